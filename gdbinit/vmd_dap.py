"""What `vmdebug dap` needs inside GDB when GDB is a debug adapter: tasks, CPUs, steps, and a quiet end.

Answers are one line of JSON on GDB's output, which GDB's adapter returns to its client.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import gdb
import vmd_guest
import vmd_history
import vmd_kernel
import vmd_modules
import vmd_reverse
import vmd_slide
import vmd_task
from vmd_follow import STEP

DONE = "vmdebugStepped"
"""The event that ends a step of `step`; GDB's own events have other names."""

TROUBLE = {
    "panic": ("panic", "vpanic"),
    "oops": ("oops_enter",),
    "warn": ("__warn", "__report_bug"),
}
"""Functions that the kernel calls at each kind of trouble; the ones that exist get breakpoints."""

BACK: dict[str, Callable[[], vmd_reverse.Arrived]] = {
    "reverse-continue": vmd_reverse.back,
    "reverse-next": lambda: vmd_reverse.line(into=False),
    "reverse-stepi": vmd_reverse.stepi,
}
"""The commands of `step` that go back in time."""

_REASONS = {
    "breakpoint-hit": "breakpoint",
    "watchpoint-trigger": "data breakpoint",
    "end-stepping-range": "step",
    vmd_reverse.BEGIN: "entry",
}
"""The protocol's words for the reasons of `vmd_reverse.Arrived`."""

_LONGEST_STACK = 64

_CAUGHT: list[gdb.Breakpoint] = []
_kept = False


def define(*, keep: bool, ours: bool) -> None:
    """Prepare this GDB.

    Args:
        keep: Whether the guest stays stopped when GDB ends without another order.
        ours: Whether the client may kill the guest.
    """
    global _kept  # noqa: PLW0603 - one GDB has one guest
    _kept = keep
    for setting in ("style enabled off", "style emoji off"):
        with contextlib.suppress(gdb.error):  # emojis came with GDB 17
            gdb.execute(f"set {setting}", to_string=True)
    gdb.events.stop.connect(_stopped)
    gdb.events.gdb_exiting.connect(_exiting)
    if not ours:
        gdb.execute("define hook-kill\npython import vmd_dap; vmd_dap.refuse_kill()\nend", to_string=True)


def refuse_kill() -> None:
    """Refuse GDB's `kill`, which ends QEMU.

    Raises:
        gdb.GdbError: always.
    """
    raise gdb.GdbError("kill: the session did not start this guest\nend it with `vmdebug stop`")


def step(command: str, thread: int) -> None:
    """Begin a step that follows its task from CPU to CPU; `DONE` tells its end.

    Args:
        command: "next", "step" or "vmd-finish", or one of `BACK`.
        thread: GDB's number of the CPU.
    """
    gdb.execute(f"thread {thread}", to_string=True)
    gdb.newest_frame().select()
    gdb.post_event(lambda: _step(command))


def cpus() -> None:
    """Print the CPUs and their tasks: a list of `[thread, CPU, pid, name]`; pid is -1 if it is unknown."""
    runs = vmd_guest.has_vmlinux() and vmd_guest.kernel_runs()
    _put(
        [[thread.num, vmd_guest.cpu_of(thread), *_current(thread, runs=runs)] for thread in vmd_guest.cpus()]
    )


def tasks() -> None:
    """Print the tasks: a list of `[pid, name, state, address]`."""
    try:
        vmd_guest.need_connected()
        numbers = [vmd_guest.cpu_of(thread) for thread in vmd_guest.cpus()]
        running = {vmd_kernel.address_of(vmd_kernel.current(number)): number for number in numbers}
        found = [
            [int(task["pid"]), vmd_kernel.name_of(task), _state(task, running), vmd_kernel.address_of(task)]
            for task in vmd_kernel.tasks()
        ]
    except gdb.MemoryError as error:
        raise gdb.GdbError(vmd_slide.misplaced() or f"the kernel's tasks cannot be read: {error}") from error
    _put(sorted(found))


def task_frames(address: int) -> None:
    """Print where a task is: a list of `[function, file, line]`; a task on a CPU has its CPU's frames.

    Args:
        address: Of its task_struct.
    """
    task = vmd_kernel.at(address, vmd_kernel.struct("task_struct"))
    selected = gdb.selected_thread()
    on = next(
        (
            thread
            for thread in vmd_guest.cpus()
            if vmd_kernel.address_of(vmd_kernel.current(vmd_guest.cpu_of(thread))) == address
        ),
        None,
    )
    try:
        if on is not None:
            on.switch()
            first: gdb.Frame | None = gdb.newest_frame()
        else:
            first = vmd_task.SLEEPER.show(vmd_task.asleep(task))
        _put(_frames(first))
    finally:
        vmd_task.SLEEPER.clear()
        if selected is not None:
            selected.switch()


def catch(*kinds: str) -> None:
    """Set breakpoints for kinds of trouble, in place of those before; print `{number: kind}`."""
    while _CAUGHT:
        each = _CAUGHT.pop()
        if each.is_valid():
            each.delete()
    numbers = {}
    for kind in kinds:
        name = next((name for name in TROUBLE[kind] if vmd_slide.address(name) is not None), None)
        if name is not None:
            _CAUGHT.append(gdb.Breakpoint(name))
            numbers[str(_CAUGHT[-1].number)] = kind
    _put(numbers)


def _step(command: str) -> None:
    body: dict[str, object] = {}
    try:
        if command in BACK:
            body = _back(command)
        elif command in ("next", "step"):
            _follow(command)
        else:
            gdb.execute(command)
    except (gdb.error, gdb.GdbError, KeyboardInterrupt) as failed:
        body = {"error": str(failed) or "interrupted"}
    thread = gdb.selected_thread()
    _send(DONE, {**body, "running": thread is not None and thread.is_running()})


def _back(command: str) -> dict[str, object]:
    """Go back; return the parts of the event `stopped`, which GDB sends only for stops of forward runs."""
    vmd_guest.need_connected()
    vmd_history.position()
    try:
        arrived = BACK[command]()
    finally:
        _forget()
    hit = {"hitBreakpointIds": [arrived.number]} if arrived.number else {}
    return {"reason": _REASONS[arrived.reason], **hit}


def _forget() -> None:
    """Have GDB's adapter forget frames and variables, as it does itself when the guest runs."""
    from gdb.dap import frames, varref  # noqa: PLC0415 - only GDB as an adapter has them

    for module, name in ((frames, "_clear_frame_ids"), (varref, "clear_vars")):
        clear = getattr(module, name, None)
        if clear is not None:
            clear(None)


def _follow(command: str) -> None:
    followed = True
    while followed:
        STEP.next(silent=True)
        try:
            gdb.execute(command, to_string=True)
        finally:
            followed = STEP.end()


def _send(event: str, body: dict[str, Any]) -> None:
    """Send an event through GDB's adapter, in order with its own."""
    from gdb.dap.server import send_event  # noqa: PLC0415 - only GDB as an adapter has it

    send_event(event, body)


def _stopped(_event: gdb.StopEvent) -> None:
    """Give new modules symbols after a stop; elsewhere a prompt does this."""
    gdb.post_event(_catch_up)


def _catch_up() -> None:
    with contextlib.suppress(gdb.error, gdb.GdbError):
        vmd_modules.catch_up()


def _exiting(_event: object) -> None:
    """Leave a guest stopped that was found stopped, if the client is gone."""
    thread = gdb.selected_thread()
    if _kept and thread is not None and thread.is_valid() and not thread.is_running():
        gdb.execute("disconnect", to_string=True)


def _current(thread: gdb.InferiorThread, *, runs: bool) -> tuple[int, str]:
    if runs:
        with contextlib.suppress(gdb.error, gdb.GdbError):
            task = vmd_kernel.current(vmd_guest.cpu_of(thread))
            return int(task["pid"]), vmd_kernel.name_of(task)
    return -1, ""


def _state(task: gdb.Value, running: dict[int, int]) -> str:
    cpu = running.get(vmd_kernel.address_of(task))
    if cpu is not None:
        return f"on CPU {cpu}"
    return "asleep" if vmd_task.state_of(task) else "waiting for a CPU"


def _frames(frame: gdb.Frame | None) -> list[list[object]]:
    found: list[list[object]] = []
    while frame is not None and frame.pc() and len(found) < _LONGEST_STACK:
        where = frame.find_sal()
        file = where.symtab.fullname() if where.symtab is not None else ""
        found.append([frame.name() or hex(frame.pc()), file, where.line if file else 0])
        frame = frame.older()
    return found


def _put(answer: object) -> None:
    gdb.write(f"{json.dumps(answer)}\n")
