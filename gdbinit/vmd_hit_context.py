"""The task that a CPU runs and the guest's time, which each trace hit records."""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

import gdb
import vmd_arch
import vmd_kernel
import vmd_memory
from vmd_registers import Registers


class Task(NamedTuple):
    """The task that a CPU runs.

    Args:
        pointer: A `struct task_struct *`.
        pid: Its `pid`.
        comm: Its `comm`, an array of characters.
        name: That as text.
    """

    pointer: gdb.Value
    pid: int
    comm: gdb.Value
    name: str


class _Layout(NamedTuple):
    """Where the current task is: the per-CPU variable's base address, and its struct's fields."""

    current: int
    kind: gdb.Type
    pid: int
    comm: int
    comm_type: gdb.Type


def _layout() -> _Layout:
    task = vmd_kernel.struct("task_struct")
    try:
        hot = gdb.parse_and_eval("pcpu_hot")["current_task"]
    except gdb.error:
        hot = gdb.parse_and_eval("current_task")
    current = vmd_kernel.per_cpu_base(vmd_kernel.address_of(hot))
    fields = {field.name: field for field in task.fields() if field.name}
    pid, comm = fields.get("pid"), fields.get("comm")
    if pid is None or comm is None or comm.type is None:
        raise gdb.GdbError("struct task_struct has no pid or no comm")
    return _Layout(current, task.pointer(), (pid.bitpos or 0) // 8, (comm.bitpos or 0) // 8, comm.type)


def no_task() -> str:
    """Return why the current task cannot be found; "" if it can."""
    try:
        _layout()
    except (gdb.error, gdb.GdbError) as error:
        return str(error)
    return ""


class HitContext:
    """Addresses of the current task and of the guest's time. Create it at a hit: the slide is known then."""

    def __init__(self) -> None:
        self._clock = 0
        self._task, self._has_clock = self._find_task(), self._find_clock()

    def _find_task(self) -> _Layout | None:
        try:
            return _layout()
        except (gdb.error, gdb.GdbError):
            return None

    def _find_clock(self) -> bool:
        try:
            clock = _timekeeper()["timekeeper"]["tkr_mono"]
            offsets = [int(clock[name].address or 0) for name in ("shift", "xtime_nsec", "base")]
        except gdb.error:
            return False
        self._clock = offsets[0]
        self._nsec, self._base = offsets[1] - offsets[0], offsets[2] - offsets[0]
        return True

    def task(self, registers: Registers) -> Task | None:
        """Return the task that the selected CPU runs; None if it cannot be read.

        Args:
            registers: The CPU's registers.
        """
        layout = self._task
        if layout is None:
            return None
        try:
            # QEMU sends this register with the others; __per_cpu_offset would take another packet.
            pointer = vmd_memory.read(layout.current + registers[vmd_arch.current().per_cpu_register], 8)
            task = int.from_bytes(pointer, "little")
            # One read for both: another packet costs more than the bytes between them.
            start = min(layout.pid, layout.comm)
            end = max(layout.pid + 4, layout.comm + layout.comm_type.sizeof)
            data = vmd_memory.read(task + start, end - start)
        except gdb.error:
            return None
        (pid,) = struct.unpack_from("<i", data, layout.pid - start)
        comm = data[layout.comm - start :][: layout.comm_type.sizeof]
        name = comm.partition(b"\0")[0].decode(errors="replace")
        return Task(gdb.Value(task).cast(layout.kind), pid, gdb.Value(comm, layout.comm_type), name)

    def clock(self) -> float | None:
        """Return the guest's monotonic time in seconds at its last tick; see kernel/time/timekeeping.c."""
        if not self._has_clock:
            return None
        try:
            data = vmd_memory.read(self._clock, max(self._nsec, self._base) + 8)
        except gdb.error:
            return None
        shift = struct.unpack_from("<I", data)[0]
        nsec = struct.unpack_from("<Q", data, self._nsec)[0] >> (shift & 63)
        return float((struct.unpack_from("<q", data, self._base)[0] + nsec) / 1e9)


class Here:
    """The selected CPU at a hit; what costs packets is read at its first use.

    Args:
        context: Where the kernel has its current task.
    """

    def __init__(self, context: HitContext) -> None:
        self._context = context
        self.registers = Registers()
        thread = gdb.selected_thread()
        self.cpu = thread.num - 1 if thread is not None else 0

    @functools.cached_property
    def task(self) -> Task | None:
        """The task that it runs; None if that cannot be read."""
        return self._context.task(self.registers)


def _timekeeper() -> gdb.Value:
    try:
        return gdb.parse_and_eval("tk_core")
    except gdb.error:
        # Since Linux 6.17 it is an array with auxiliary clocks; TIMEKEEPER_CORE is the first element.
        return gdb.parse_and_eval("timekeeper_data[0]")
