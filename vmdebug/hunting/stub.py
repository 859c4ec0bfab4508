"""A client of QEMU's gdbstub that stops the guest at a write and reads and writes its memory.

See "GDB Remote Serial Protocol" in GDB's manual. A stop by QMP comes at the host's time, one by a watchpoint
at an instruction. After a stop by a device (pvpanic) QEMU's clock jumps to the next timer if the vCPU thread
is faster than the main loop; after one by a watchpoint it always jumps. See icount_start_warp_timer of
softmmu/icount.c, and cpu_handle_guest_debug of softmmu/cpus.c.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import GuestDiedError, VmError

PIECE = 1024
"""Bytes of memory in one packet; QEMU 7.2 takes packets of 4096 bytes, in hex."""

LOOK_SECONDS = 0.5
"""How long to wait for a stop before the caller looks whether the guest has died."""

_INTERRUPT = b"\x03"

_RIP = 16 * 8
"""Where RIP is in the answer to `g`: after 16 registers of 8 bytes; see gdb-xml/i386-64bit.xml of QEMU."""


class Stub:
    """A connection to a gdbstub; a context manager. Connecting stops a guest that runs.

    Args:
        path: The stub's socket.
        deadline: When to give up connecting.
    """

    def __init__(self, path: Path, *, deadline: Deadline) -> None:
        self._path = path
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._deadline = deadline

    def __enter__(self) -> Self:
        try:
            self._socket.connect(str(self._path))
            self.ask("?", deadline=self._deadline)
        except OSError as error:
            self._socket.close()
            raise GuestDiedError(f"QEMU's gdbstub {self._path} does not answer: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def watch(self, address: int, size: int, *, deadline: Deadline) -> None:
        """Stop the guest after each write to memory at a virtual address."""
        self._done(f"Z2,{address:x},{size}", deadline)

    def insert(self, address: int, *, deadline: Deadline) -> None:
        """Stop the guest when a CPU gets to an address, before it executes what is there."""
        self._done(f"Z0,{address:x},1", deadline)

    def remove(self, address: int, *, deadline: Deadline) -> None:
        """Take back `insert`."""
        self._done(f"z0,{address:x},1", deadline)

    def pc(self, *, deadline: Deadline) -> int:
        """Return the program counter of the CPU that stopped the guest, of x86_64."""
        registers = bytes.fromhex(self.ask("g", deadline=deadline))
        return int.from_bytes(registers[_RIP : _RIP + 8], "little")

    def read(self, address: int, size: int, *, deadline: Deadline) -> bytes:
        """Return memory at a virtual address of the task that runs.

        Raises:
            VmError: it is not mapped.
        """
        data = bytearray()
        while len(data) < size:
            answer = self.ask(f"m{address + len(data):x},{min(PIECE, size - len(data)):x}", deadline=deadline)
            if not answer or answer.startswith("E"):
                raise VmError(f"the guest's memory at {address:#x} cannot be read: {answer}")
            data += bytes.fromhex(answer)
        return bytes(data)

    def write(self, address: int, data: bytes, *, deadline: Deadline) -> None:
        """Write memory at a virtual address of the task that runs."""
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._done(f"M{address + start:x},{len(piece):x}:{piece.hex()}", deadline)

    def resume(self) -> None:
        """Set the guest running; `stopped` returns its next stop."""
        self._send("c")

    def resume_only(self, cpus: Sequence[int]) -> None:
        """Set some CPUs running; the others stay where they are. `stopped` returns the next stop."""
        self._send("vCont" + "".join(f";c:{cpu + 1:x}" for cpu in cpus))

    def step(self, cpu: int) -> None:
        """Have one CPU execute one instruction; `stopped` returns the stop."""
        self._send(f"vCont;s:{cpu + 1:x}")

    def interrupt(self) -> None:
        """Ask for a stop."""
        self._socket.sendall(_INTERRUPT)

    def stopped(self, seconds: float) -> str | None:
        """Return why the guest stopped; None if it still runs after so many seconds.

        Raises:
            GuestDiedError: QEMU has ended.
        """
        return self._packet(seconds)

    def ask(self, packet: str, *, deadline: Deadline) -> str:
        """Send a packet and return the answer."""
        self._send(packet)
        answer = self._packet(deadline.left("QEMU's gdbstub to answer"))
        if answer is None:
            raise deadline.error("QEMU's gdbstub to answer")
        return answer

    def _done(self, packet: str, deadline: Deadline) -> None:
        answer = self.ask(packet, deadline=deadline)
        if answer != "OK":
            raise VmError(f"QEMU's gdbstub refused {packet[:20]!r}: {answer or 'it does not know it'}")

    def _send(self, packet: str) -> None:
        data = packet.encode()
        try:
            self._socket.sendall(b"$%b#%02x" % (data, sum(data) & 255))
        except OSError as error:
            raise GuestDiedError("QEMU has ended") from error

    def _packet(self, seconds: float) -> str | None:
        end = Deadline.after(seconds)
        while (mark := self._received.find(b"#")) < 0 or len(self._received) < mark + 3:
            if not wait_ready(self._socket.fileno(), seconds=end.remaining):
                return None
            try:
                got = self._socket.recv(1 << 16)
            except OSError:
                got = b""
            if not got:
                raise GuestDiedError("QEMU has ended")
            self._received += got
        whole, self._received = self._received[:mark], self._received[mark + 3 :]
        self._socket.sendall(b"+")
        return whole.rpartition(b"$")[2].decode()
