"""Turns the blocks that a guest executed into source lines and branches.

A line is executed if the first instruction of one of its statements is (a row of the line table with
`is_stmt`). A branch is a way from a line to another by a conditional jump: from the line of the jump to that
of its target, or to that of the next instruction. Copies of a line, as by inlining, are one line. Ways that
stay in the line are no branches, as `a && b` on one line; ways to another file, into inlined code or out of
it, are one branch of the line, `EXIT`.
"""

from __future__ import annotations

import bisect
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmdebug import paths
from vmdebug.errors import UsageError
from vmdebug.spelling import nearest
from vmdebug.trace.coverage.code import Code, Jump
from vmdebug.trace.coverage.line_program import END, FILE_SHIFT, LINE_MASK, LINE_SHIFT, STATEMENT
from vmdebug.trace.coverage.wire import Block

EXIT = -1
"""The destination of a branch to another file."""


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    """Lines and branches of a source file.

    Args:
        lines: The numbers of lines.
        branches: The branches: the line of the jump, and the line that it leads to, or `EXIT`.
    """

    lines: frozenset[int] = frozenset()
    branches: frozenset[tuple[int, int]] = frozenset()

    def merged(self, other: Lines) -> Lines:
        """Return the lines and branches of both."""
        return Lines(lines=self.lines | other.lines, branches=self.branches | other.branches)


class Piece(NamedTuple):
    """Code in the guest's memory.

    Args:
        low: Its first address.
        high: The address behind it.
        code: The file that it is from.
        moved: How far it is from its address in `code`.
    """

    low: int
    high: int
    code: Code
    moved: int


class Found(NamedTuple):
    """What was executed.

    Args:
        files: By the paths in the debugging information.
        elsewhere: The number of blocks that are in no piece of code: modules that are not known any more.
    """

    files: dict[str, Lines]
    elsewhere: int


def executed(blocks: Iterable[Block], pieces: Sequence[Piece]) -> Found:
    """Return the lines and branches of blocks.

    Args:
        blocks: The blocks.
        pieces: The guest's code, by address.
    """
    lows = [each.low for each in pieces]
    inside: dict[int, list[Block]] = defaultdict(list)
    elsewhere = 0
    for block in blocks:
        number = bisect.bisect_right(lows, block.start) - 1
        if number >= 0 and block.start < pieces[number].high:
            inside[number].append(block)
        else:
            elsewhere += 1
    found = _Collected()
    for number, some in inside.items():
        piece = pieces[number]
        for each in some:
            found.add_block(piece.code, each, piece.moved)
    return Found(found.files(), elsewhere)


def possible(code: Code) -> dict[str, Lines]:
    """Return all lines of a file that have code, and all branches."""
    found = _Collected()
    for row in code.rows:
        if row & STATEMENT:
            found.add_row(code, row)
    for jump in code.jumps:
        found.add_branch(code, jump, taken=True, passed=True)
    return found.files()


class _Collected:
    """Lines and branches, by source file."""

    def __init__(self) -> None:
        self._lines: dict[str, set[int]] = defaultdict(set)
        self._branches: dict[str, set[tuple[int, int]]] = defaultdict(set)

    def files(self) -> dict[str, Lines]:
        """Return them; a branch needs a line that has a statement."""
        return {
            file: Lines(
                lines=frozenset(lines),
                branches=frozenset(each for each in self._branches[file] if each[0] in lines),
            )
            for file, lines in self._lines.items()
        }

    def add_row(self, code: Code, row: int) -> None:
        line = row >> LINE_SHIFT & LINE_MASK
        if line:
            self._lines[code.file(row)].add(line)

    def add_block(self, code: Code, block: Block, moved: int) -> None:
        start = block.start - moved
        addresses, rows = code.addresses, code.rows
        number = bisect.bisect_left(addresses, start)
        if number and (number == len(addresses) or addresses[number] != start):
            number -= 1  # the block begins within the code of a line
        end = start + block.size
        while number < len(addresses) and addresses[number] < end:
            if rows[number] & STATEMENT and not rows[number] & END:
                self.add_row(code, rows[number])
            number += 1
        if block.target and (block.taken or block.passed):
            jump = Jump(start + block.jump, block.target - moved, end)
            self.add_branch(code, jump, taken=block.taken, passed=block.passed)

    def add_branch(self, code: Code, jump: Jump, *, taken: bool, passed: bool) -> None:
        row = _row_at(code, jump.address)
        if not row:
            return
        line = row >> LINE_SHIFT & LINE_MASK
        for address, went in ((jump.taken, taken), (jump.passed, passed)):
            to = _destination(code, address, row) if went else line
            if to != line:
                self._branches[code.file(row)].add((line, to))


def _row_at(code: Code, address: int) -> int:
    """Return the row of an instruction; 0 if it belongs to no line."""
    number = bisect.bisect_right(code.addresses, address) - 1
    row = code.rows[number] if number >= 0 else 0
    return row if row >> LINE_SHIFT & LINE_MASK else 0


def _destination(code: Code, address: int, row: int) -> int:
    """Return the line of a jump's destination, seen from the jump's row.

    If several lines begin there, as a call and the inlined function, it is the first in the jump's file.
    """
    number = bisect.bisect_left(code.addresses, address)
    while number < len(code.addresses) and code.addresses[number] == address:
        there = code.rows[number]
        if there >> FILE_SHIFT == row >> FILE_SHIFT and there >> LINE_SHIFT & LINE_MASK:
            return there >> LINE_SHIFT & LINE_MASK
        number += 1
    there = _row_at(code, address)
    return there >> LINE_SHIFT & LINE_MASK if there and there >> FILE_SHIFT == row >> FILE_SHIFT else EXIT


def merged(several: Iterable[Mapping[str, Lines]]) -> dict[str, Lines]:
    """Return the lines and branches of several, by source file."""
    found: dict[str, Lines] = {}
    for each in several:
        for file, lines in each.items():
            found[file] = found[file].merged(lines) if file in found else lines
    return found


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What code there is.

    Args:
        root: The directory of the kernel's source.
        files: By path: all lines with code, and all branches.
        modules: The paths of the sources of modules, by the names of the modules.
    """

    root: str
    files: dict[str, Lines]
    modules: dict[str, list[str]] = {}

    def selected(self, wanted: Sequence[str]) -> list[str]:
        """Return the files in files and directories of the kernel's tree, and those of modules.

        Raises:
            UsageError: the kernel has no code from there.
        """
        found: set[str] = set()
        for words in wanted:
            path = os.path.normpath(Path(self.root, words))
            some = {each for each in self.files if each == path or each.startswith(f"{path}/")}
            some |= set(self.modules.get(paths.module_name(Path(words)), ())) if "/" not in words else set()
            if not some:
                raise self._unknown(words)
            found |= some
        return sorted(found)

    def _unknown(self, words: str) -> UsageError:
        names = {os.path.relpath(each, self.root) for each in self.files}
        directories = {str(parent) for each in names for parent in Path(each).parents}
        near = nearest(words, [*directories, *names, *self.modules])
        return UsageError(
            f"the kernel has no code from {words}",
            hint=f"did you mean {near}?"
            if near
            else "give a file or directory of the kernel's tree, or a module that was loaded",
        )

    def merged(self, other: Known) -> Known:
        """Return the code of both."""
        return Known(
            root=self.root,
            files=merged((self.files, other.files)),
            modules=self.modules | other.modules,
        )
