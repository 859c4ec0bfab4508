"""Lists the locks that tasks hold: from lockdep where the kernel has it, else those that others wait for."""

from __future__ import annotations

from collections.abc import Iterator

import gdb
import vmd_batch
import vmd_guest
import vmd_kernel
import vmd_slide
import vmd_task
import vmd_wait

_CLASS_BITS = 13
"""MAX_LOCKDEP_KEYS_BITS of include/linux/lockdep_types.h: the width of `held_lock.class_idx`."""


class Locks(gdb.Command):
    """Show who holds which locks, and who waits for them: vmd-locks [PID|NAME].

    With lockdep (CONFIG_LOCKDEP): all locks that each task holds. Otherwise the mutexes,
    rw_semaphores and semaphores that blocked tasks wait for, with their holders.

    Example: vmd-locks 'kworker*'
    """

    NAME = "vmd-locks"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_DATA)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Print the locks."""
        vmd_guest.need_connected()
        names = argument.split()
        if len(names) > 1:
            vmd_batch.fail("vmd-locks takes one pid or name\nexample: vmd-locks 1", vmd_batch.USAGE)
        try:
            tasks = vmd_task.find(names[0]) if names else list(vmd_kernel.tasks())
            lines = list(held(tasks) if _has_lockdep() else _wanted(tasks))
        except gdb.MemoryError as error:
            vmd_batch.fail(vmd_slide.misplaced() or f"the kernel's tasks cannot be read: {error}")
        for line in lines:
            print(line)
        if not lines and _has_lockdep():
            print("no task holds a lock")
        elif not lines:
            print("no task waits for a lock; this kernel records held locks only with CONFIG_LOCKDEP")


def _has_lockdep() -> bool:
    return vmd_kernel.has_field(vmd_kernel.struct("task_struct"), "held_locks")


def held(tasks: list[gdb.Value]) -> Iterator[str]:
    """Yield a line for each lock that lockdep has recorded, and for its task.

    See lockdep_print_held_locks of kernel/locking/lockdep.c.
    """
    for task in tasks:
        depth = int(task["lockdep_depth"])
        if depth:
            yield f"pid {int(task['pid'])} ({vmd_kernel.name_of(task)}) holds {depth}:"
        for number in range(depth):
            held = task["held_locks"][number]
            how = {0: "", 1: ", for reading", 2: ", for reading, recursively"}.get(int(held["read"]), "")
            taken = held["acquire_ip"].cast(gdb.lookup_type("void").pointer())
            where = taken.format_string(symbols=True)
            instance = int(held["instance"]) & (2**64 - 1)
            yield f"  #{number} {_class(held)} {instance:#x}{how}, taken at {where}"


def _class(held: gdb.Value) -> str:
    number = int(held["class_idx"]) & ((1 << _CLASS_BITS) - 1)
    try:
        name = gdb.parse_and_eval("lock_classes")[number]["name"]
        return name.string(errors="replace") if name else "a lock without a name"
    except gdb.error:
        return f"a lock of class {number}"


def _wanted(tasks: list[gdb.Value]) -> Iterator[str]:
    """Yield the locks that tasks wait for, each once, with the tasks that wait."""
    waiting: dict[str, list[str]] = {}
    running = vmd_task.running()
    for task in tasks:
        if vmd_kernel.address_of(task) in running or not vmd_task.state_of(task) or vmd_task.idle(task):
            continue
        lock = vmd_wait.reason(task).lock
        if lock is not None:
            waiting.setdefault(str(lock), []).append(f"pid {int(task['pid'])} ({vmd_kernel.name_of(task)})")
    for lock_, tasks_ in waiting.items():
        yield f"{lock_}, wanted by {', '.join(tasks_)}"
