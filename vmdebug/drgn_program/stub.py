"""A gdbstub of a dump: `target remote | python -m vmdebug.drgn_program.stub DUMP VMLINUX`.

GDB cannot read dumps of kernels, because their memory is physical; drgn translates the addresses. See "The
GDB Remote Serial Protocol" in GDB's manual.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import drgn
from drgn.helpers.linux.cpumask import for_each_present_cpu
from drgn.helpers.linux.sched import cpu_curr

_PACKET_BYTES = 0x8000
"""The longest packet in either direction."""

_READ_BYTES = 1 << 16
_INTERRUPT = b"\x03"

_REGISTERS = (
    *((name, 8) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")),
    *((f"r{number}", 8) for number in range(8, 16)),
    ("rip", 8),
    *((name, 4) for name in ("rflags", "cs", "ss", "ds", "es", "fs", "gs")),
)
"""drgn's names of the registers and their sizes in bytes, in GDB's order: see gdb/amd64-tdep.c."""

_OK, _ERROR = "OK", "E01"

_STOPS = frozenset("?csCS")
"""Why it is stopped; and requests to run, which are answered by SIGINT: after other signals GDB may go on."""

_WRITES = frozenset("MXGP")
_IGNORED = frozenset("ZzD")
"""Breakpoints, which are never hit, and the end."""

_NO_RUN = "a dump does not run: it is the memory of one moment"


class Stub:
    """Answers GDB's packets.

    Args:
        program: The dump, with symbols of vmlinux.
    """

    def __init__(self, program: drgn.Program) -> None:
        self._program = program
        # A panic stops the other CPUs, which are then not online.
        self._registers = [_of_cpu(program, cpu) for cpu in for_each_present_cpu(program)]
        self._selected = self._first = _panicked(program, len(self._registers))

    def answer(self, packet: str) -> str:
        """Return the answer to a packet; "" for one that is not supported."""
        command, rest = packet[:1], packet[1:]
        match command:
            case "g":
                return self._registers[self._selected]
            case "m":
                return self._memory(rest)
            case "H":
                return self._select(rest[1:])
            case "T":
                return _OK if self._is_cpu(rest) else _ERROR
            case "q":
                return self._query(rest)
        return self._other(command)

    def _other(self, command: str) -> str:
        if command in _STOPS:
            return f"T02thread:{self._first + 1:x};"
        if command in _WRITES:
            return _ERROR
        return _OK if command in _IGNORED else ""

    def _query(self, query: str) -> str:
        name = query.partition(":")[0]
        match name:
            case "Supported":
                return f"PacketSize={_PACKET_BYTES:x}"
            case "C":
                return f"QC{self._first + 1:x}"
            case "fThreadInfo":
                return "m" + ",".join(f"{number + 1:x}" for number in range(len(self._registers)))
            case "sThreadInfo":
                return "l"
            case "Attached":
                return "1"
        return ""

    def _memory(self, rest: str) -> str:
        address, _, size = rest.partition(",")
        try:
            data: bytes = self._program.read(int(address, 16), min(int(size, 16), _PACKET_BYTES // 2 - 1))
        except (drgn.FaultError, ValueError):
            return "E0e"  # EFAULT
        return data.hex()

    def _select(self, thread: str) -> str:
        if thread in ("0", "-1"):
            return _OK
        if not self._is_cpu(thread):
            return _ERROR
        self._selected = int(thread, 16) - 1
        return _OK

    def _is_cpu(self, thread: str) -> bool:
        return 0 < int(thread, 16) <= len(self._registers)


def _of_cpu(program: drgn.Program, cpu: int) -> str:
    """Return the registers of a CPU as the answer to `g`; those that the dump lacks as "xx"."""
    try:
        known = program.stack_trace(cpu_curr(program, cpu))[0].registers()
    except (ValueError, LookupError, IndexError):
        known = {}
    return "".join(
        known[name].to_bytes(size, "little").hex() if name in known else "xx" * size
        for name, size in _REGISTERS
    )


def _panicked(program: drgn.Program, count: int) -> int:
    """Return the CPU that has panicked; 0 if none has."""
    try:
        cpu = int(program["panic_cpu"].counter)
    except LookupError:
        return 0
    return cpu if 0 <= cpu < count else 0


def packets(read: int, write: int) -> Iterator[str]:
    """Yield the packets that arrive, and acknowledge them.

    Args:
        read: Descriptor to read from.
        write: Descriptor for the acknowledgements.
    """
    pending = b""
    while data := os.read(read, _READ_BYTES):
        pending += data
        while True:
            pending = pending.lstrip(b"+-" + _INTERRUPT)
            end = pending.find(b"#")
            if end < 0 or len(pending) < end + 3:
                break
            body, pending = pending[1:end], pending[end + 3 :]
            os.write(write, b"+")
            yield body.decode(errors="replace")


def framed(answer: str) -> bytes:
    """Return an answer as a packet."""
    data = answer.encode()
    return b"$" + data + f"#{sum(data) % 256:02x}".encode()


def serve(stub: Stub, read: int, write: int) -> None:
    """Answer packets until GDB disconnects."""
    for packet in packets(read, write):
        if packet.startswith(("vKill", "k")):
            return
        if packet[:1] in ("c", "s", "C", "S"):
            os.write(write, framed("O" + f"{_NO_RUN}\n".encode().hex()))
        os.write(write, framed(stub.answer(packet)))
        if packet.startswith("D"):
            return


def main() -> None:
    """Serve the dump and the vmlinux of the command line."""
    dump, vmlinux = sys.argv[1:]
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.set_core_dump(dump)
    program.set_enabled_debug_info_finders(["standard"])
    program.load_debug_info([Path(vmlinux)], main=True)
    serve(Stub(program), sys.stdin.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
