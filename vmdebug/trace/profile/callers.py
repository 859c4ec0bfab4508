"""Finds the caller that a walk of frame pointers leaves out: that of a function without a frame of its own.

A function that has just been entered has not saved the frame pointer yet, and assembler code may never do so:
then the register has the frame of the caller, and the first return address that the walk finds is the
caller's own. `unwind_frame.c` of the kernel does not look for this. An emulator makes it common: QEMU's TCG
takes interrupts at the starts of translated blocks.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmdebug.arch import Arch
from vmdebug.kimage import elf, symbols
from vmdebug.kimage.symbols import Function

_EXECUTABLE = 4  # SHF_EXECINSTR


class Callers:
    """Finds the callers that are left out in backtraces of a kernel.

    Args:
        vmlinux: The kernel.
        slide: How far KASLR has moved it.
        row: Its architecture.

    Raises:
        UsageError: vmlinux is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """

    def __init__(self, vmlinux: Path, slide: int, row: Arch) -> None:
        self._slide = slide
        self._calls = row.direct_calls
        self._text = tuple(_text(vmlinux))
        self._functions: Sequence[Function] = symbols.functions(vmlinux)
        self.left_out = functools.cache(self._left_out)
        """Return the address of the function that is left out between an address and the one that its
        backtrace returns to next; None if there is none. It is left out if the call before the return address
        is one of that function, which in turn calls the function at the first address."""

    def _left_out(self, address: int, returns: int) -> int | None:
        leaf = self._function(address - self._slide)
        called = self._function(next(self._targets(returns - self._slide), 0))
        if leaf is None or called is None or called.address == leaf.address:
            return None
        ends = range(called.address + 1, called.address + called.size + 1)
        found = any(target == leaf.address for end in ends for target in self._targets(end))
        return called.address + self._slide if found else None

    def _function(self, address: int) -> Function | None:
        number = bisect.bisect_right(self._functions, address, key=lambda each: each.address) - 1
        function = self._functions[number] if number >= 0 else None
        return function if function is not None and address - function.address < function.size else None

    def _targets(self, end: int) -> Iterator[int]:
        """Yield what the bytes before an address call, if they are a direct call."""
        for call in self._calls:
            size = call.at + call.size
            code, operand = self._read(end - size, call.at), self._read(end - call.size, call.size)
            if len(code) == call.at and int.from_bytes(code, "big") & int(call.mask, 16) == int(
                call.code, 16
            ):
                yield end + int.from_bytes(operand, "little", signed=True)

    def _read(self, address: int, size: int) -> bytes:
        for start, data in self._text:
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return b""


def _text(vmlinux: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the code of a vmlinux: its linked address, and the bytes."""
    with elf.opened(vmlinux) as stream:
        try:
            for section in elf.parse(vmlinux, stream).iter_sections():
                if section["sh_flags"] & _EXECUTABLE and elf.has_bytes(section):
                    yield section["sh_addr"], section.data()
        except Exception as error:
            raise elf.damaged(vmlinux, error) from error
