"""The line table of a compilation unit."""

from __future__ import annotations

import bisect
import posixpath
from typing import Any

import msgspec


class Row(msgspec.Struct, frozen=True, array_like=True):
    """A row of the table.

    Args:
        address: The linked address of an instruction.
        file: The number of the source file in the unit.
        line: The line in it; 0 if the code belongs to none.
        statement: Whether a statement begins there.
        end: Whether the code before the address was the last of a sequence.
    """

    address: int
    file: int
    line: int
    statement: bool
    end: bool


class Lines:
    """The line table of a compilation unit, by address.

    Args:
        cu: pyelftools' unit.
        dwarf: pyelftools' DWARF.
    """

    def __init__(self, cu: Any, dwarf: Any) -> None:
        self._program = dwarf.line_program_for_CU(cu)
        top = cu.get_top_DIE().attributes
        directory = top.get("DW_AT_comp_dir")
        self._directory = directory.value.decode(errors="replace") if directory is not None else ""
        states = (each.state for each in self._program.get_entries()) if self._program is not None else ()
        self.rows = sorted(
            (Row(s.address, s.file, s.line, s.is_stmt, s.end_sequence) for s in states if s is not None),
            key=lambda row: (row.address, not row.end),
        )
        self._statements = [row for row in self.rows if row.statement or row.end]
        self._addresses = [row.address for row in self._statements]

    def at(self, address: int) -> tuple[str, int]:
        """Return the file and the line of an instruction; "" and 0 if there is none."""
        found = bisect.bisect_right(self._addresses, address) - 1
        if found < 0 or self._statements[found].end:
            return "", 0
        row = self._statements[found]
        return self.file(row.file), row.line

    def file(self, number: int) -> str:
        """Return the path of a file of the unit; "" if it has no such file."""
        if self._program is None:
            return ""
        header = self._program.header
        first = 0 if header.version >= 5 else 1  # noqa: PLR2004 - DWARF 5 counts from 0
        files = header.file_entry
        if not 0 <= number - first < len(files):
            return ""
        entry = files[number - first]
        name = entry.name.decode(errors="replace")
        directories = [each if isinstance(each, bytes) else each.name for each in header.include_directory]
        at = entry.dir_index - first
        directory = directories[at].decode(errors="replace") if 0 <= at < len(directories) else ""
        return posixpath.normpath(posixpath.join(self._directory, directory, name))

    def places(self, line: int, file: str) -> list[int]:
        """Return the addresses at which the statements of a line begin: the first of each run of rows.

        Args:
            line: The line.
            file: The end of the file's path: its name, or with directories.
        """
        wanted = "/" + file.lstrip("/")
        found, before = [], False
        for row in self.rows:
            here = not row.end and row.line == line and ("/" + self.file(row.file)).endswith(wanted)
            if here and not before and row.statement:
                found.append(row.address)
            before = here and (before or row.statement)
        return found
