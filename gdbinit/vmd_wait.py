"""Says why tasks sleep: their state, the function that waits, the lock that they want, and its holder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import gdb
import vmd_batch
import vmd_frames
import vmd_guest
import vmd_kernel
import vmd_slide
import vmd_task

STATES = {0x0: "ready", 0x1: "interruptible", 0x2: "uninterruptible", 0x4: "stopped", 0x8: "traced"}
"""The names of `task->__state`; see include/linux/sched.h. TASK_NOLOAD and others are further bits."""

_BLOCKED = 0x2
_SLEEPERS = re.compile(
    r"(?:__|io_)?schedule\w*|context_switch|wait_woken|_*mutex_lock\w*|rwsem_down_\w+|_*down(?:_\w+)?"
)
"""Functions that sleep for their callers: of the scheduler, and of locks."""

_OWNER = ~0x7 & (2**64 - 1)
"""The flags are the lowest three bits of an owner; see kernel/locking/mutex.c and rwsem.c."""

_READERS = 0x1
"""RWSEM_READER_OWNED."""

_MUTEX, _RWSEM, _SEMAPHORE = "mutex", "rw_semaphore", "semaphore"

_WAITERS = {
    "__mutex_lock_common": ("lock", _MUTEX),
    "__mutex_lock": ("lock", _MUTEX),
    "__mutex_lock_slowpath": ("lock", _MUTEX),
    "mutex_lock": ("lock", _MUTEX),
    "mutex_lock_interruptible": ("lock", _MUTEX),
    "mutex_lock_killable": ("lock", _MUTEX),
    "rwsem_down_read_slowpath": ("sem", _RWSEM),
    "rwsem_down_write_slowpath": ("sem", _RWSEM),
    "down_read": ("sem", _RWSEM),
    "down_write": ("sem", _RWSEM),
    "___down_common": ("sem", _SEMAPHORE),
    "__down_common": ("sem", _SEMAPHORE),
    "down": ("sem", _SEMAPHORE),
}
"""The functions that wait for a lock: its argument, and its type."""


class Lock(NamedTuple):
    """A lock that a task waits for.

    Args:
        kind: Its type: "mutex".
        address: Its address.
        holder: Who holds it, in words; "" if unknown.
    """

    kind: str
    address: int
    holder: str

    def __str__(self) -> str:
        held = f", held by {self.holder}" if self.holder else ""
        return f"{self.kind} {_symbol(self.address)}{held}"


class Reason(NamedTuple):
    """Why a task sleeps.

    Args:
        state: The name of its state.
        function: The function that waits.
        place: Its caller's file and line, or "".
        lock: The lock that it waits for, or None.
    """

    state: str
    function: str
    place: str
    lock: Lock | None


class Wait(gdb.Command):
    """Say why tasks sleep: vmd-wait [PID|NAME].

    Prints a task's state, the function that waits, and if it is a mutex, rw_semaphore or
    semaphore, its address and who holds it. NAME may have wildcards. Without an argument:
    all tasks that are blocked (state D).

    Example: vmd-wait 'kworker*'
    """

    NAME = "vmd-wait"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STACK)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Print a line for each task."""
        vmd_guest.need_connected()
        names = argument.split()
        if len(names) > 1:
            vmd_batch.fail("vmd-wait takes one pid or name\nexample: vmd-wait 1", vmd_batch.USAGE)
        try:
            found = vmd_task.find(names[0]) if names else list(blocked())
        except gdb.MemoryError as error:
            vmd_batch.fail(vmd_slide.misplaced() or f"the kernel's tasks cannot be read: {error}")
        if not found:
            print("no task is blocked")
        running = vmd_task.running()
        for task in found:
            print(line(task, running.get(vmd_kernel.address_of(task))))


def blocked() -> Iterator[gdb.Value]:
    """Yield the tasks in state D: uninterruptible, without those that are only idle."""
    for task in vmd_kernel.tasks():
        if vmd_task.state_of(task) & _BLOCKED and not vmd_task.idle(task):
            yield task


def line(task: gdb.Value, cpu: int | None) -> str:
    """Return a task, and why it sleeps, on a line.

    Args:
        task: The task.
        cpu: The CPU that runs it; None for none.
    """
    who = f"pid {int(task['pid'])} ({vmd_kernel.name_of(task)})"
    if cpu is not None:
        return f"{who} runs on CPU {cpu}"
    if not vmd_task.state_of(task):
        return f"{who} waits for a CPU"
    why = reason(task)
    words = f"{who} {why.state} in {why.function or 'unknown code'}{why.place}"
    return f"{words}: waits for {why.lock}" if why.lock is not None else words


def reason(task: gdb.Value) -> Reason:
    """Return why a task sleeps."""
    state = vmd_task.state_of(task)
    words = "idle" if vmd_task.idle(task) else _named(state)
    function = place = ""
    lock = None
    with vmd_task.shown(task) as first:
        frame: gdb.Frame | None = first
        while frame is not None and frame.pc() and not function:
            name = (frame.name() or "").partition(".")[0]
            if name and not _SLEEPERS.fullmatch(name):
                function, place = name, _place(frame)
            if lock is None and name in _WAITERS:
                lock = _lock(frame, *_WAITERS[name])
            frame = frame.older()
    return Reason(words, function, place, lock)


def _named(state: int) -> str:
    return next((name for bit, name in STATES.items() if bit and state & bit), f"in state {state:#x}")


def _place(frame: gdb.Frame) -> str:
    found = frame.find_sal()
    if found.symtab is None:
        return ""
    return f" at {vmd_frames.relative(found.symtab.filename)}:{found.line}"


def _lock(frame: gdb.Frame, argument: str, kind: str) -> Lock | None:
    """Return the lock that a function waits for; None if the compiler has not kept its address."""
    try:
        pointer = frame.read_var(argument)
        if pointer.is_optimized_out:
            return None
        lock = pointer.referenced_value()
        return Lock(kind, int(pointer) & (2**64 - 1), holder(lock, kind))
    except (gdb.error, ValueError):
        return None


def holder(lock: gdb.Value, kind: str) -> str:
    """Return who holds a lock, in words; "" if nobody, or if the lock does not say."""
    if kind == _SEMAPHORE:
        return ""
    owner = int(lock["owner"]["counter"]) & (2**64 - 1)
    task = owner & _OWNER
    if kind == _RWSEM and owner & _READERS:
        last = f", the last was {_task(task)}" if task else ""
        return f"readers{last}"
    return _task(task) if task else ""


def _task(address: int) -> str:
    try:
        task = vmd_kernel.at(address, vmd_kernel.struct("task_struct"))
        return f"pid {int(task['pid'])} ({vmd_kernel.name_of(task)})"
    except gdb.error:
        return f"the task at {address:#x}"


def _symbol(address: int) -> str:
    text = gdb.Value(address).cast(gdb.lookup_type("void").pointer()).format_string(symbols=True)
    return text if "<" in text else f"{address:#x}"
