"""The task that a CPU runs and the guest's time, which each trace hit records."""

from __future__ import annotations

import struct

import gdb
import vmd_arch
import vmd_kernel
import vmd_memory
from vmd_registers import Registers

_COMM = 16
"""Size of a task's name in bytes: TASK_COMM_LEN of include/linux/sched.h."""


class HitContext:
    """Addresses of the current task and of the guest's time. Create it at a hit: the slide is known then."""

    def __init__(self) -> None:
        self._current = self._pid = self._comm = self._clock = 0
        self._has_task, self._has_clock = self._find_task(), self._find_clock()

    def _find_task(self) -> bool:
        try:
            task = vmd_kernel.struct("task_struct")
            try:
                hot = gdb.parse_and_eval("pcpu_hot")["current_task"]
            except gdb.error:
                hot = gdb.parse_and_eval("current_task")
            self._current = vmd_kernel.per_cpu_base(vmd_kernel.address_of(hot))
            offsets = {field.name: (field.bitpos or 0) // 8 for field in task.fields() if field.name}
            self._pid, self._comm = offsets["pid"], offsets["comm"]
        except (gdb.error, gdb.GdbError, KeyError):
            return False
        return True

    def _find_clock(self) -> bool:
        try:
            clock = _timekeeper()["timekeeper"]["tkr_mono"]
            offsets = [int(clock[name].address or 0) for name in ("shift", "xtime_nsec", "base")]
        except gdb.error:
            return False
        self._clock = offsets[0]
        self._nsec, self._base = offsets[1] - offsets[0], offsets[2] - offsets[0]
        return True

    def task(self, registers: Registers) -> tuple[int, str] | None:
        """Return pid and name of the task that the selected CPU runs; None if they cannot be read.

        Args:
            registers: The CPU's registers.
        """
        if not self._has_task:
            return None
        try:
            # QEMU sends this register with the others; __per_cpu_offset would take another packet.
            pointer = vmd_memory.read(self._current + registers[vmd_arch.current().per_cpu_register], 8)
            task = int.from_bytes(pointer, "little")
            # One read for both: another packet costs more than the bytes between them.
            start = min(self._pid, self._comm)
            data = vmd_memory.read(task + start, abs(self._pid - self._comm) + _COMM)
        except gdb.error:
            return None
        (pid,) = struct.unpack_from("<i", data, self._pid - start)
        comm = data[self._comm - start :][:_COMM]
        return pid, comm.partition(b"\0")[0].decode(errors="replace")

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


def _timekeeper() -> gdb.Value:
    try:
        return gdb.parse_and_eval("tk_core")
    except gdb.error:
        # Since Linux 6.17 it is an array with auxiliary clocks; TIMEKEEPER_CORE is the first element.
        return gdb.parse_and_eval("timekeeper_data[0]")
