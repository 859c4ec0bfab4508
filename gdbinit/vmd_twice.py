"""Tells a breakpoint's hit from one that GDB is told of twice.

To go on from a breakpoint GDB takes it out, has QEMU execute one instruction, and puts it
back. QEMU's emulator (TCG) ends such a step without having executed anything when an interrupt
comes at that very moment: `cpu_tb_exec` in accel/tcg/cpu-exec.c raises EXCP_DEBUG also for a
block that was asked to exit before its first instruction. To GDB, which stands where it stood,
that is another hit. Seen in one of some 300 steps on a busy machine.

All registers are then as they were, as they may be at a real next call. What differs is the
breakpoint itself: it is out of QEMU only while the step goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

import gdb
import vmd_arch
from vmd_registers import Registers


class Twice:
    """Knows the last hit of each CPU."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, ...]] = {}

    def told(self, cpu: int, registers: Registers) -> bool:
        """Return whether the selected CPU's hit is the one before, told again.

        To be asked in `gdb.Breakpoint.stop`, while GDB's breakpoints are as they were when the guest stopped.

        Args:
            cpu: Its number.
            registers: Its registers, at a software breakpoint.
        """
        compared = tuple(_compared(registers))
        suspected = self._last.get(cpu) == compared
        self._last[cpu] = compared
        return suspected and not _planted(registers.pc)


def _compared(registers: Registers) -> Iterator[int]:
    # Enough to make a hit unsuspected; where there are no such registers more hits are looked at.
    arch = vmd_arch.current()
    for name in (arch.pc, arch.sp, *arch.arguments):
        try:
            yield registers[name]
        except gdb.error:
            continue


def _planted(address: int) -> bool:
    """Return whether QEMU has a breakpoint there, by taking it out and putting it back.

    See "Packets" in GDB's manual: `z` answers OK only where there is one.
    """
    connection = gdb.selected_inferior().connection
    if not isinstance(connection, gdb.RemoteTargetConnection):
        return True
    packet = f"0,{address:x},{vmd_arch.current().breakpoint_kind}"
    if connection.send_packet(f"z{packet}") != b"OK":
        return False
    if connection.send_packet(f"Z{packet}") != b"OK":
        raise gdb.GdbError(f"QEMU does not put the breakpoint at {address:#x} back")
    return True
