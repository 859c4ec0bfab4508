"""Decodes `.debug_line`: which source line each instruction belongs to. See DWARF 5, section 6.2.

pyelftools decodes it, too, but a kernel has millions of rows, and it needs minutes for them.
"""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Callable
from typing import NamedTuple

STATEMENT, END = 1, 2
"""Flags of a row: a statement begins there; the code before the address was the last of a sequence."""

LINE_SHIFT, FILE_SHIFT = 2, 34
LINE_MASK = (1 << (FILE_SHIFT - LINE_SHIFT)) - 1

_PATH, _DIRECTORY = 1, 2
"""DW_LNCT_path, DW_LNCT_directory_index."""

_STRING, _LINE_STRP, _STRP, _UDATA, _BLOCK = 0x08, 0x1F, 0x0E, 0x0F, 0x09
_FIXED = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16}
"""DW_FORM_*: data1, data2, data4, data8, data16."""


class Strings(NamedTuple):
    """The sections with the strings that line tables refer to.

    Args:
        line: `.debug_line_str`.
        other: `.debug_str`.
    """

    line: bytes
    other: bytes


class Sequence(NamedTuple):
    """The rows of a contiguous piece of code.

    Args:
        addresses: The addresses of the rows, which do not decrease.
        rows: For each, its file in the list of files, its line and its flags.
    """

    addresses: array[int]
    rows: array[int]


class Decoder:
    """Decodes the line tables of a file.

    Args:
        data: `.debug_line`, relocated.
        strings: The sections with strings.
        directory_of: Returns DW_AT_comp_dir of the unit with the table at an offset; for DWARF before 5.
    """

    def __init__(self, data: bytes, strings: Strings, directory_of: Callable[[int], str]) -> None:
        self._data = data
        self._strings = strings
        self._directory_of = directory_of
        self._files: dict[str, int] = {}

    @property
    def files(self) -> list[str]:
        """The paths of the source files, by the numbers in the rows decoded until now."""
        return list(self._files)

    def decode(self, at: int) -> tuple[list[Sequence], int]:
        """Return the sequences of the table at an offset, and the offset of the next table.

        Raises:
            ValueError: the table is damaged, or of an unknown version.
        """
        data = self._data
        length, at, wide = int.from_bytes(data[at : at + 4], "little"), at + 4, 4
        if length == 0xFFFF_FFFF:  # noqa: PLR2004 - 64-bit DWARF
            length, at, wide = int.from_bytes(data[at : at + 8], "little"), at + 8, 8
        start, end = at - 4 if wide == 4 else at - 12, at + length  # noqa: PLR2004 - as above
        version = int.from_bytes(data[at : at + 2], "little")
        if not 2 <= version <= 5 or end > len(data):  # noqa: PLR2004 - of DWARF
            raise ValueError(f"a line table of version {version} at {start:#x}")
        at += 2 + (2 if version >= 5 else 0)  # noqa: PLR2004 - DWARF 5 has two sizes here
        program = at + wide + int.from_bytes(data[at : at + wide], "little")
        at += wide
        minimum = data[at]
        at += 1 + (1 if version >= 4 else 0)  # noqa: PLR2004 - DWARF 4 has the number of operations
        head = _Head(minimum, bool(data[at]), _signed(data[at + 1]), data[at + 2], data[at + 3])
        lengths = data[at + 4 : at + 3 + head.opcode_base]
        at += 3 + head.opcode_base
        new = version >= 5  # noqa: PLR2004 - its tables have formats
        files = self._tables(at, wide) if new else self._old_tables(at, self._directory_of(start))
        numbers = [self._files.setdefault(each, len(self._files)) for each in files]
        return _run(data[program:end], head, lengths, numbers), end

    def _tables(self, at: int, wide: int) -> list[str]:
        directories, at = self._table(at, wide)
        files, _ = self._table(at, wide)
        first = directories[0][0] if directories else ""
        paths = [posixpath.join(first, name) for name, _ in directories]
        return [
            posixpath.normpath(posixpath.join(paths[number] if number < len(paths) else "", name))
            for name, number in files
        ]

    def _table(self, at: int, wide: int) -> tuple[list[tuple[str, int]], int]:
        """Return the entries of a table: names and numbers of directories; and where it ends."""
        count, at = self._data[at], at + 1
        form = []
        for _ in range(count):
            kind, at = _unsigned(self._data, at)
            how, at = _unsigned(self._data, at)
            form.append((kind, how))
        entries, at = _unsigned(self._data, at)
        found = []
        for _ in range(entries):
            name, number = "", 0
            for kind, how in form:
                value, at = self._value(how, at, wide)
                if kind == _PATH:
                    name = str(value)
                elif kind == _DIRECTORY:
                    number = int(value)
            found.append((name, number))
        return found, at

    def _value(self, form: int, at: int, wide: int) -> tuple[str | int, int]:
        data = self._data
        if form in (_LINE_STRP, _STRP):
            section = self._strings.line if form == _LINE_STRP else self._strings.other
            return _text(section, int.from_bytes(data[at : at + wide], "little"))[0], at + wide
        if form == _STRING:
            return _text(data, at)
        if form == _UDATA:
            return _unsigned(data, at)
        if form == _BLOCK:
            size, at = _unsigned(data, at)
            return 0, at + size
        if form in _FIXED:
            size = _FIXED[form]
            return int.from_bytes(data[at : at + size], "little"), at + size
        raise ValueError(f"a line table with the form {form:#x}")

    def _old_tables(self, at: int, directory: str) -> list[str]:
        directories = [directory]
        while self._data[at]:
            name, at = _text(self._data, at)
            directories.append(posixpath.join(directory, name))
        at += 1
        files = [""]  # they count from 1
        while self._data[at]:
            name, at = _text(self._data, at)
            number, at = _unsigned(self._data, at)
            _, at = _unsigned(self._data, at)
            _, at = _unsigned(self._data, at)
            where = directories[number] if number < len(directories) else ""
            files.append(posixpath.normpath(posixpath.join(where, name)))
        return files


class _Head(NamedTuple):
    minimum: int
    default_statement: bool
    line_base: int
    line_range: int
    opcode_base: int


def _run(  # noqa: C901, PLR0912, PLR0915 - one loop with local names: calls would make it three times slower
    data: bytes, head: _Head, lengths: bytes, files: list[int]
) -> list[Sequence]:
    """Run a line number program; see DWARF 5, 6.2.5."""
    minimum, default, base, width, first = head
    found: list[Sequence] = []
    addresses, rows = array("Q"), array("Q")
    address, line, number, flag, last = 0, 1, 1, int(default), -1
    at, end = 0, len(data)
    while at < end:
        code = data[at]
        at += 1
        if code >= first:
            code -= first
            address += code // width * minimum
            line += base + code % width
        elif code == 1:  # DW_LNS_copy
            pass
        elif code == 0:
            size, at = _unsigned(data, at)
            extended, after = data[at], at + size
            if extended == 2:  # noqa: PLR2004 - DW_LNE_set_address
                address = int.from_bytes(data[at + 1 : after], "little")
            at = after
            if extended != 1:  # DW_LNE_end_sequence
                continue
            addresses.append(address)
            rows.append(END)
            found.append(Sequence(addresses, rows))
            addresses, rows = array("Q"), array("Q")
            address, line, number, flag, last = 0, 1, 1, int(default), -1
            continue
        elif code == 2:  # noqa: PLR2004 - DW_LNS_advance_pc
            value, at = _unsigned(data, at)
            address += value * minimum
            continue
        elif code == 3:  # noqa: PLR2004 - DW_LNS_advance_line
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:  # noqa: PLR2004 - the last byte of a LEB128
                    break
            line += value - (1 << shift) if byte & 0x40 else value
            continue
        elif code == 4:  # noqa: PLR2004 - DW_LNS_set_file
            number, at = _unsigned(data, at)
            continue
        elif code == 5:  # noqa: PLR2004 - DW_LNS_set_column
            while data[at] >= 0x80:  # noqa: PLR2004 - as above
                at += 1
            at += 1
            continue
        elif code == 6:  # noqa: PLR2004 - DW_LNS_negate_stmt
            flag ^= STATEMENT
            continue
        elif code == 8:  # noqa: PLR2004 - DW_LNS_const_add_pc
            address += (255 - first) // width * minimum
            continue
        elif code == 9:  # noqa: PLR2004 - DW_LNS_fixed_advance_pc
            address += int.from_bytes(data[at : at + 2], "little")
            at += 2
            continue
        else:
            for _ in range(lengths[code - 1]):
                _, at = _unsigned(data, at)
            continue
        row = files[number] << FILE_SHIFT | line << LINE_SHIFT | flag if number < len(files) else flag
        if row != last or address != addresses[-1]:
            addresses.append(address)
            rows.append(row)
            last = row
    return found


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned LEB128, and the offset behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a LEB128
            return value, at
        shift += 7


def _signed(byte: int) -> int:
    return byte - 256 if byte >= 128 else byte  # noqa: PLR2004 - of one byte


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(errors="replace"), end + 1
