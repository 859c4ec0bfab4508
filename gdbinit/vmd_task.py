"""Shows tasks that no CPU runs: where they sleep, as frames of GDB."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator
from typing import NamedTuple

import gdb
import gdb.unwinder
import vmd_arch
import vmd_batch
import vmd_guest
import vmd_kernel
import vmd_registers
import vmd_slide

_IDLE = 0x402
"""TASK_IDLE: TASK_UNINTERRUPTIBLE and TASK_NOLOAD."""


class Asleep(NamedTuple):
    """The registers of a sleeping task.

    Args:
        registers: Their values, by GDB's names.
    """

    registers: dict[str, int]


class Sleeper(gdb.unwinder.Unwinder):
    """Makes a sleeping task's first frame the caller of the function in which the selected CPU is.

    This does not change the guest. Functions that are inlined at the CPU's PC have frames too, so the number
    of the task's first frame varies.
    """

    def __init__(self) -> None:
        super().__init__("vmd-task")
        self.asleep: Asleep | None = None
        self._cpu = (0, 0)

    def show(self, asleep: Asleep) -> gdb.Frame:
        """Show a task's frames from now on; return the first one."""
        self.clear()
        self._cpu = _place(gdb.newest_frame())
        self.asleep = asleep
        gdb.invalidate_cached_frames()
        frame: gdb.Frame | None = gdb.newest_frame()
        while frame is not None and _place(frame)[1] == self._cpu[1]:
            frame = frame.older()
        if frame is None:
            raise gdb.GdbError("GDB cannot unwind from this CPU to the task\nselect another CPU: thread N")
        return frame

    def clear(self) -> None:
        """Show the CPU's own frames again."""
        if self.asleep is not None:
            self.asleep = None
            gdb.invalidate_cached_frames()

    def __call__(self, pending_frame: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        """Unwind the CPU's innermost function to the task."""
        if self.asleep is None or _place(pending_frame) != self._cpu:
            return None
        # GDB rejects a caller whose stack address is below the callee's, and the task's stack may be
        # anywhere.
        word = vmd_registers.word()
        here = vmd_registers.FrameId(0, pending_frame.read_register(vmd_arch.current().pc))
        unwound = pending_frame.create_unwind_info(here)
        for name, value in self.asleep.registers.items():
            unwound.add_saved_register(name, gdb.Value(value).cast(word))
        return unwound


def _place(frame: gdb.Frame | gdb.PendingFrame) -> tuple[int, int]:
    word, arch = vmd_registers.word(), vmd_arch.current()
    return int(frame.read_register(arch.pc).cast(word)), int(frame.read_register(arch.sp).cast(word))


SLEEPER = Sleeper()


class Task(gdb.Command):
    """Show where tasks sleep: vmd-task [--frame] PID|NAME.

    NAME may have wildcards. For a task that a CPU runs, shows that CPU's backtrace. With
    --frame the task's frames stay selected until the guest runs again: up, down, info locals
    and print work in them.

    Example: vmd-task --frame 1
    """

    NAME = "vmd-task"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STACK)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Find the tasks and show them."""
        words = argument.split()
        keep = "--frame" in words
        names = [word for word in words if word != "--frame"]
        if len(names) != 1:
            vmd_batch.fail("vmd-task takes one pid or name\nexample: vmd-task 1", vmd_batch.USAGE)
        vmd_guest.need_connected()
        SLEEPER.clear()
        try:
            found = find(names[0])
        except gdb.MemoryError as error:
            vmd_batch.fail(vmd_slide.misplaced() or f"the kernel's tasks cannot be read: {error}")
        if keep and len(found) > 1:
            pids = ", ".join(str(int(task["pid"])) for task in found)
            vmd_batch.fail(f"{len(found)} tasks match {names[0]}\ngive one pid: {pids}", vmd_batch.USAGE)
        on_cpus = running()
        for task in found:
            _show(task, on_cpus.get(_address(task)), keep=keep)


def running() -> dict[int, int]:
    """Return the CPUs by the addresses of the tasks that they run."""
    numbers = [vmd_guest.cpu_of(thread) for thread in vmd_guest.cpus()]
    return {_address(vmd_kernel.current(number)): number for number in numbers}


def find(name: str) -> list[gdb.Value]:
    """Return the tasks of a pid, or with a name that may have wildcards; end the command if there is none."""
    tasks = [*vmd_kernel.tasks(), *_idle()]
    if name.isdigit():
        found = [task for task in tasks if int(task["pid"]) == int(name)]
    else:
        found = [task for task in tasks if fnmatch.fnmatchcase(vmd_kernel.name_of(task), name)]
    if not found:
        vmd_batch.fail(f"no task matches {name}\nlist all tasks: vmd-task *", vmd_batch.USAGE)
    return found


def _idle() -> Iterator[gdb.Value]:
    """Return the idle tasks of all CPUs except the first; the kernel has no list of them."""
    for thread in vmd_guest.cpus():
        task = vmd_kernel.per_cpu(vmd_guest.cpu_of(thread), "runqueues")["idle"]
        if task and int(task) != int(gdb.parse_and_eval("&init_task")):
            yield task.dereference()


def _show(task: gdb.Value, cpu: int | None, *, keep: bool) -> None:
    where = f"on CPU {cpu}" if cpu is not None else "asleep" if state_of(task) else "waiting for a CPU"
    print(f"pid {int(task['pid'])} ({vmd_kernel.name_of(task)}) {where}, task_struct {_address(task):#x}")
    if cpu is None:
        _show_asleep(task, keep=keep)
        return
    selected = gdb.selected_thread()
    vmd_guest.cpus()[cpu].switch()
    gdb.execute("backtrace")
    if not keep and selected is not None:
        selected.switch()


def state_of(task: gdb.Value) -> int:
    """Return a task's state; see include/linux/sched.h. 0 is TASK_RUNNING."""
    # The field has the underscores since Linux 5.14 (2f064a59a11f).
    return int(task["__state" if vmd_kernel.has_field(task.type, "__state") else "state"])


def idle(task: gdb.Value) -> bool:
    """Whether it is a kernel thread that sleeps for lack of work (TASK_IDLE)."""
    return state_of(task) & _IDLE == _IDLE


@contextlib.contextmanager
def shown(task: gdb.Value) -> Iterator[gdb.Frame]:
    """Show a sleeping task's frames for the block, and yield the first one."""
    try:
        yield SLEEPER.show(asleep(task))
    finally:
        SLEEPER.clear()


def _address(task: gdb.Value) -> int:
    return vmd_kernel.address_of(task)


def _show_asleep(task: gdb.Value, *, keep: bool) -> None:
    first = SLEEPER.show(asleep(task)).level()
    try:
        print_from(first)
        if keep:
            gdb.execute(f"frame {first}")
    finally:
        if not keep:
            SLEEPER.clear()


def print_from(first: int) -> None:
    """Print the backtrace from the frame of a level on."""
    lines = gdb.execute("backtrace", to_string=True)
    print(lines[f"\n{lines}".index(f"\n#{first} ") :], end="")


def asleep(task: gdb.Value) -> Asleep:
    """Return the registers of a task that no CPU runs, from its stack."""
    arch = vmd_arch.current()
    kind = vmd_kernel.struct(arch.switch_frame)
    sp = int(task["thread"]["sp"])
    frame = vmd_kernel.at(sp, kind)
    registers = {
        register: int(frame[field]) & (2**64 - 1)
        for field, register in arch.switch_registers.items()
        if vmd_kernel.has_field(kind, field)
    }
    return Asleep({**registers, arch.sp: (sp + kind.sizeof) & (2**64 - 1)})


def register() -> None:
    """Register the unwinder, and hide the task's frames as soon as the guest runs."""
    gdb.unwinder.register_unwinder(None, SLEEPER, replace=True)
    gdb.events.cont.connect(lambda _event: SLEEPER.clear())
