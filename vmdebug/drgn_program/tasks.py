"""What reports show of tasks: which ones wait without being interruptible, and for which lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import drgn
from drgn.helpers.linux.locking import mutex_owner, rwsem_owner
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import task_state_to_char

MOST = 32
"""Number of tasks to show."""

_BLOCKED = "D"
"""The letter of TASK_UNINTERRUPTIBLE, as ps(1) prints it; idle kernel threads have another one."""

_OWNERS: tuple[tuple[str, str, Callable[[drgn.Object], drgn.Object]], ...] = (
    ("mutex", "struct mutex *", mutex_owner),
    ("rw_semaphore", "struct rw_semaphore *", rwsem_owner),
)
_ARGUMENTS = ("lock", "sem")
"""The names of the lock in the functions of kernel/locking/."""

Trace = Callable[[drgn.Object], drgn.StackTrace]


def blocked(program: drgn.Program, trace: Trace) -> str:
    """Return the tasks in an uninterruptible sleep, with their stacks and the owners of their locks.

    Args:
        program: The program.
        trace: Returns the stack of a task.
    """
    found = [task for task in for_each_task(program) if task_state_to_char(task) == _BLOCKED]
    parts = [_told(task, trace) for task in found[:MOST]]
    if len(found) > MOST:
        parts.append(f"and {len(found) - MOST} more")
    return "\n\n".join(parts)


def named(task: drgn.Object) -> str:
    """Return a task's pid and name: "pid 1 (init)"."""
    return f"pid {task.pid.value_()} ({task.comm.string_().decode(errors='replace')})"


def _told(task: drgn.Object, trace: Trace) -> str:
    stack = trace(task)
    waits = next(_locks(stack), "")
    return f"{named(task)}{waits}\n{stack}"


def _locks(stack: drgn.StackTrace) -> Iterator[str]:
    """Yield what a task waits for: " waits for mutex 0x… (NAME), held by pid 2 (x)"."""
    for frame in stack:
        for name in _ARGUMENTS:
            try:
                lock = frame[name]
                kind = lock.type_.type_name()
                owner_of = next((owner for _, type_, owner in _OWNERS if kind == type_), None)
                if owner_of is None:
                    continue
                owner = owner_of(lock)
                holder = f", held by {named(owner)}" if owner else ""
                yield f" waits for {kind.removesuffix(' *').removeprefix('struct ')} {_place(lock)}{holder}"
            except (KeyError, LookupError, drgn.FaultError, drgn.ObjectAbsentError, AttributeError):
                continue


def _place(lock: drgn.Object) -> str:
    address = lock.value_()
    try:
        symbol = lock.prog_.symbol(address)
    except LookupError:
        return f"{address:#x}"
    offset = address - symbol.address
    return f"{symbol.name}+{offset:#x}" if offset else symbol.name
