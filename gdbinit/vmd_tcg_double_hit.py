"""Detects breakpoint hits that QEMU's emulator (TCG) reports twice.

To resume from a breakpoint, GDB removes it, has QEMU execute one instruction, and inserts it again. TCG can
end such a step before the instruction has executed: when an interrupt asks the CPU to leave the translation
block before its first instruction, `cpu_tb_exec` of accel/tcg/cpu-exec.c nevertheless raises EXCP_DEBUG. GDB
then sees the CPU at the breakpoint again, and counts a second hit. It was seen in one of some 300 steps
on a busy host.

QEMU has this code since 6.2 ("accel/tcg: Handle gdb singlestep in cpu_tb_exec"); it was observed with 7.2.22,
and development sources of 2026 still have it. We know of no upstream report.

A repeated hit has the same registers as the hit before, but a second call may have them, too. The difference
is that GDB removes the breakpoint from QEMU only during the step.
"""

from __future__ import annotations

from collections.abc import Iterator

import gdb
import vmd_arch
from vmd_registers import Registers


class DoubleHits:
    """The last hit of each CPU."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, ...]] = {}

    def repeated(self, cpu: int, registers: Registers) -> bool:
        """Whether the selected CPU's hit is a repetition of the hit before.

        Call it from `gdb.Breakpoint.stop`: QEMU's breakpoints are then still as they were when the guest
        stopped.

        Args:
            cpu: The CPU's number.
            registers: The CPU's registers at a software breakpoint.
        """
        compared = tuple(_compared(registers))
        suspected = self._last.get(cpu) == compared
        self._last[cpu] = compared
        return suspected and not _inserted(registers.pc)


def _compared(registers: Registers) -> Iterator[int]:
    # If these differ, it is another hit. Without such registers, more hits are checked with QEMU.
    arch = vmd_arch.current()
    for name in (arch.pc, arch.sp, *arch.arguments):
        try:
            yield registers[name]
        except gdb.error:
            continue


def _inserted(address: int) -> bool:
    """Whether QEMU has a breakpoint at an address: remove it and insert it again.

    QEMU answers a `z` packet with OK only where it has the breakpoint; see "Packets" in GDB's manual.
    """
    connection = gdb.selected_inferior().connection
    if not isinstance(connection, gdb.RemoteTargetConnection):
        return True
    packet = f"0,{address:x},{vmd_arch.current().breakpoint_kind}"
    if connection.send_packet(f"z{packet}") != b"OK":
        return False
    if connection.send_packet(f"Z{packet}") != b"OK":
        raise gdb.GdbError(f"QEMU refuses to insert the breakpoint at {address:#x} again")
    return True
