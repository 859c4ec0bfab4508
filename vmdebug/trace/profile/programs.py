"""The functions of a program or library of user space, from its symbol tables; see elf(5)."""

from __future__ import annotations

import bisect
import io
from collections.abc import Callable
from typing import Any

_FUNCTIONS = ("STT_FUNC", "STT_GNU_IFUNC")
_FAR = 1 << 20
"""How far behind the start of a function without a size an address may be: assembler code has none."""


class Program:
    """The functions of an ELF file.

    Args:
        segments: The offset in the file, the size there and the linked address of each loaded segment.
        functions: The linked address, the size and the name of each function.
    """

    def __init__(
        self, segments: tuple[tuple[int, int, int], ...], functions: dict[int, tuple[int, str]]
    ) -> None:
        self._segments = segments
        self._functions = functions
        self._starts = sorted(functions)

    @classmethod
    def read(cls, data: bytes, debug_file: Callable[[str], bytes | None] = lambda _: None) -> Program | None:
        """Return the functions of a file; None if it is no ELF file that can be read.

        Args:
            data: The file.
            debug_file: Returns a file by its path: where a distribution has the symbols that it has taken out
                of the program; None if there is none.
        """
        try:
            file = _elf(data)
            segments = tuple(
                (each["p_offset"], each["p_filesz"], each["p_vaddr"])
                for each in file.iter_segments()
                if each["p_type"] == "PT_LOAD"
            )
            functions = _functions(file, ".symtab")
            if not functions:
                functions = _debug_functions(file, debug_file) or _functions(file, ".dynsym")
        except Exception:  # noqa: BLE001 - pyelftools raises any exception for a damaged file
            return None
        return cls(segments, functions)

    @property
    def empty(self) -> bool:
        """Whether the file has no symbols."""
        return not self._functions

    def function_at(self, offset: int) -> str:
        """Return the name of the function at an offset in the file; "" if it has no symbol there."""
        for start, size, linked in self._segments:
            if start <= offset < start + size:
                address = offset - start + linked
                number = bisect.bisect_right(self._starts, address) - 1
                if number >= 0:
                    length, name = self._functions[self._starts[number]]
                    if address - self._starts[number] < (length or _FAR):
                        return name
        return ""


def _elf(data: bytes) -> Any:
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - slow to import

    return ELFFile(io.BytesIO(data))


def _functions(file: Any, section: str) -> dict[int, tuple[int, str]]:
    table = file.get_section_by_name(section)
    if table is None or table["sh_type"] == "SHT_NOBITS":
        return {}
    found: dict[int, tuple[int, str]] = {}
    for symbol in table.iter_symbols():
        if symbol["st_info"]["type"] in _FUNCTIONS and symbol["st_value"]:
            size = symbol["st_size"]
            known = found.get(symbol["st_value"])
            # Of several names for a function, the one without leading underscores is what people call it.
            if known is None or known[1].startswith("_"):
                found[symbol["st_value"]] = (size, symbol.name)
    return found


def _debug_functions(file: Any, debug_file: Callable[[str], bytes | None]) -> dict[int, tuple[int, str]]:
    """Return the functions in the file with symbols that belongs to a program; {} if there is none."""
    notes = file.get_section_by_name(".note.gnu.build-id")
    ids = [note["n_desc"] for note in notes.iter_notes()] if notes is not None else []
    for each in ids:
        data = debug_file(f"/usr/lib/debug/.build-id/{each[:2]}/{each[2:]}.debug")
        if data is not None:
            return _functions(_elf(data), ".symtab")
    return {}
