"""Source lines for the addresses in a kernel's messages, like scripts/decode_stacktrace.sh of the kernel.

It uses binutils: without a live frame GDB only knows the innermost line of inlined code. addr2line takes 0.15
s for a whole trace with a vmlinux of 80 MB.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import itertools
import lzma
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import zstandard

from vmdebug import paths, process
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel

_SYMBOL = re.compile(
    r"(?P<name>[A-Za-z_.$][\w.$]*)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)"
    r"(?: \[(?P<module>[\w-]+)(?: [0-9a-f]{16,})?\])?"  # a build-id with CONFIG_STACKTRACE_BUILD_ID
    r"|\[<(?P<address>[0-9a-f]{8,16})>\](?! *(?:\? )?[A-Za-z_])"
)
_RETURNS = re.compile(r"(?:^|\] )\s*(?:\[<[0-9a-f]+>\]\s+)?(?:\? )?$|(?:\bat:|\bin|\bfrom|\blr :) $")
"""Text before a return address: the call itself ends one byte before that address.

It does not match before the address that the CPU was at: "RIP: 0010:", "pc : ", and the place of a WARN.
"""
_OFFSET = re.compile(r"Kernel Offset: 0x([0-9a-f]+) from")

_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda packed: zstandard.ZstdDecompressor().decompressobj().decompress(packed),
}

_KNOWN = "start_kernel"
"""A function in init/main.c: what precedes that name in the debug information is the kernel's tree."""


class _Spot(NamedTuple):
    """An address to look up: in a section of a module's file, or in vmlinux, where the section is ""."""

    module: str
    section: str
    address: int


@dataclass(frozen=True, slots=True)
class _Line:
    """One of the source lines of an address; an address in inlined functions has several."""

    function: str
    file: str
    line: str


def decode(text: str, kernel: Kernel, deadline: Deadline, *, slide: int | None = None) -> str:
    """Return a kernel's messages with the source lines of their addresses.

    Args:
        text: An oops or warning, or a whole log.
        kernel: The kernel that printed it.
        deadline: When to give up.
        slide: Bytes by which KASLR moved the kernel, for addresses without names; None takes them from the
            text.

    Returns:
        The text, with `(FILE:LINE)` after each `symbol+0x12/0x34` and each bare `[<address>]` that was found.
        Paths start in the kernel's tree. Inlined code, the innermost function first, becomes `(FILE:LINE in
        FUNCTION, FILE:LINE)`. Without a source line, a bare address gets `(symbol+0x12/0x34)`.

    Raises:
        HostError: there is no vmlinux, or there are no binutils.
        BuildError: binutils cannot read a file.
        DeadlineError: it took too long.
    """
    if kernel.vmlinux is None or not _SYMBOL.search(text):
        return text
    if slide is None:
        said = _OFFSET.search(text)
        slide = int(said[1], 16) if said else 0
    with _Binaries(kernel.vmlinux, kernel.module_files(), deadline) as binaries:
        spots = {found: _spot(found, binaries, slide) for found in _SYMBOL.finditer(text)}
        lines = binaries.lines({spot for spot in spots.values() if spot is not None})
        names = binaries.symbols("")
    out, at = [], 0
    for found, spot in spots.items():
        out.append(text[at : found.end()])
        at = found.end()
        if spot is not None and lines.get(spot):
            out.append(f" ({_shown(lines[spot])})")
        elif spot is not None and found["address"] and (name := names.at(int(found["address"], 16) - slide)):
            out.append(f" ({name})")
    return "".join([*out, text[at:]])


def _spot(found: re.Match[str], binaries: _Binaries, slide: int) -> _Spot | None:
    """Return the file, section and address of a match; None if unknown."""
    before = found.string[found.string.rfind("\n", 0, found.start()) + 1 : found.start()]
    if found["address"]:
        return _Spot("", "", int(found["address"], 16) - slide - 1)
    offset, size = int(found["offset"], 16), int(found["size"], 16)
    if offset > size:
        return None  # of no function: a character was lost or doubled on the way
    module = (found["module"] or "").replace("-", "_")
    symbol = binaries.symbols(module).find(found["name"], size)
    if symbol is None or not binaries.symbols(module).reaches(symbol, offset):
        return None
    returned = offset > 0 and _RETURNS.search(before) is not None
    return _Spot(module, symbol.section if module else "", symbol.address + offset - returned)


def _shown(lines: list[_Line]) -> str:
    *inlined, outermost = lines
    parts = [f"{line.file}:{line.line} in {line.function}" for line in inlined]
    return ", ".join([*parts, f"{outermost.file}:{outermost.line}"])


class _Symbol(NamedTuple):
    """A symbol.

    Args:
        section: Its section.
        address: Its address there.
        least: Its own size in bytes, which the size that kallsyms gives it is at least; 0 where it has none.
    """

    section: str
    address: int
    least: int = 0


class _Symbols:
    """A file's symbols, as `objdump -t` prints them. Only the rows that are asked for are parsed."""

    _ROW = re.compile(r"([0-9a-f]+) .{7} (\S+)\t([0-9a-f]+) ")
    _FUNCTION = re.compile(r"([0-9a-f]+) .{6}F \S+\t([0-9a-f]+) ")

    def __init__(self, table: str) -> None:
        self._rows: dict[str, list[str]] = defaultdict(list)
        for row in table.splitlines():
            self._rows[row[row.rfind(" ") + 1 :]].append(row)

    def find(self, name: str, size: int) -> _Symbol | None:
        """Return the symbol of a name that can have a size; 0 for any.

        If there are several, return the one of that size in kallsyms. A size that none can have is of another
        build, or was garbled on the way: None.
        """
        named = self._parsed(self._rows.get(name, ()))
        if size:
            named = [each for each in named if each.least <= size]
        if len(named) > 1:
            named = [each for each in named if self._size(each) == size] or named
        return named[0] if named else None

    def reaches(self, symbol: _Symbol, offset: int) -> bool:
        """Say whether an offset can be in a symbol's function, the padding behind it included."""
        return not symbol.least or offset <= symbol.least or offset <= self._size(symbol)

    def at(self, address: int) -> str:
        """Return an address as the kernel prints it, "symbol+0x12/0x34"; "" if it is in no function."""
        for row in itertools.chain.from_iterable(self._rows.values()):
            found = self._FUNCTION.match(row)
            if found is None:
                continue
            start, size = int(found[1], 16), int(found[2], 16)
            if start <= address < start + size:
                return f"{row[row.rfind(' ') + 1 :]}+{address - start:#x}/{size:#x}"
        return ""

    def _parsed(self, rows: Iterable[str]) -> list[_Symbol]:
        found = filter(None, map(self._ROW.match, rows))
        return [
            _Symbol(section, int(address, 16), int(size, 16))
            for address, section, size in (each.groups() for each in found)
        ]

    def _size(self, symbol: _Symbol) -> int:
        # kallsyms has no sizes: a symbol reaches to the next one; see get_symbol_pos in kernel/kallsyms.c.
        later = [each for each in self._addresses[symbol.section] if each > symbol.address]
        return min(later, default=symbol.address) - symbol.address

    @functools.cached_property
    def _addresses(self) -> dict[str, list[int]]:
        addresses = defaultdict(list)
        for symbol in self._parsed(itertools.chain.from_iterable(self._rows.values())):
            addresses[symbol.section].append(symbol.address)
        return addresses


class _Binaries:
    """vmlinux and the modules' files; a context manager that removes the unpacked ones."""

    def __init__(self, vmlinux: Path, modules: tuple[Path, ...], deadline: Deadline) -> None:
        self._vmlinux = vmlinux
        self._modules = modules
        self._deadline = deadline
        self._files: dict[str, Path] | None = None
        self._symbols: dict[str, _Symbols] = {}
        self._scratch: Path | None = None
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._held.close()

    def symbols(self, module: str) -> _Symbols:
        """Return the symbols of a module, or of vmlinux for ""; none if there is no file of it."""
        if module not in self._symbols:
            file = self._file(module)
            self._symbols[module] = _Symbols(self._ask("objdump", "-t", file) if file is not None else "")
        return self._symbols[module]

    def lines(self, spots: Iterable[_Spot]) -> dict[_Spot, list[_Line]]:
        """Return the source lines of the addresses that have debug information."""
        wanted: dict[tuple[str, str], list[_Spot]] = defaultdict(list)
        for spot in spots:
            wanted[spot.module, spot.section].append(spot)
        known = self.symbols("").find(_KNOWN, 0)
        mark = None if known is None else _Spot("", "", known.address)
        if mark is not None:
            wanted["", ""].append(mark)
        found: dict[_Spot, list[_Line]] = {}
        for (module, section), group in wanted.items():
            found |= self._lines_of(module, section, group)
        shorten = _shortener(found.get(mark, []) if mark else [], self._vmlinux)
        return {spot: [shorten(line) for line in lines] for spot, lines in found.items()}

    def _lines_of(self, module: str, section: str, spots: list[_Spot]) -> dict[_Spot, list[_Line]]:
        file = self._file(module)
        options = ["-j", section] if section else []
        addresses = "".join(f"{spot.address:#x}\n" for spot in spots).encode()
        said = self._ask("addr2line", "-a", "-f", "-i", *options, "-e", file or "", stdin=addresses)
        blocks = re.split(r"^0x[0-9a-f]+\n", said, flags=re.MULTILINE)[1:]
        found = zip(spots, map(_parsed, blocks), strict=False)
        return {spot: lines for spot, lines in found if lines}

    def _ask(self, program: str, *words: str | os.PathLike[str], stdin: bytes = b"") -> str:
        path = process.find(program, package="binutils")
        return process.run([path, *words], stdin=stdin, deadline=self._deadline).stdout

    def _file(self, module: str) -> Path | None:
        if not module:
            return self._vmlinux
        if self._files is None:
            self._files = {}
            for path in itertools.chain.from_iterable(map(paths.modules, self._modules)):
                self._files.setdefault(paths.module_name(path), path)
        return self._unpacked(self._files.get(module))

    def _unpacked(self, path: Path | None) -> Path | None:
        unpack = _UNPACK.get(path.suffix) if path is not None else None
        if path is None or unpack is None:
            return path
        if self._scratch is None:
            self._scratch = Path(
                self._held.enter_context(tempfile.TemporaryDirectory(prefix="vmdebug-decode-"))
            )
        unpacked = self._scratch / path.stem
        if not unpacked.exists():
            unpacked.write_bytes(unpack(path.read_bytes()))
        return unpacked


def _parsed(block: str) -> list[_Line]:
    """Return the lines of one address in addr2line's answer: functions and places in turn."""
    words = block.splitlines()
    lines = []
    for function, place in zip(words[::2], words[1::2], strict=False):
        file, _, line = place.partition(" (discriminator")[0].rpartition(":")
        if file in ("", "??") or not line.isdecimal():
            return []
        lines.append(_Line(function, file, line))
    return lines


def _shortener(mark: list[_Line], vmlinux: Path) -> Callable[[_Line], _Line]:
    """Return a function that makes a line's path relative to the kernel's tree."""
    tops = [f"{vmlinux.resolve().parent}/", f"{vmlinux.parent}/"]
    if mark and mark[-1].file.endswith("init/main.c"):
        tops.insert(0, mark[-1].file.removesuffix("init/main.c"))

    def shorten(line: _Line) -> _Line:
        file = next(
            (line.file.removeprefix(top) for top in tops if top and line.file.startswith(top)), line.file
        )
        return _Line(line.function, os.path.normpath(file), line.line)

    return shorten
