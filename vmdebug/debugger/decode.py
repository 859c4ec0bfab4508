"""Source lines for the addresses in a kernel's messages, like scripts/decode_stacktrace.sh of the kernel.

It uses binutils: without a live frame GDB only knows the innermost line of inlined code. addr2line takes 0.15
s for a whole trace with a vmlinux of 80 MB.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from vmdebug import arch, paths, process
from vmdebug.deadline import Deadline
from vmdebug.debugger import code_bytes
from vmdebug.guest import Kernel
from vmdebug.kimage import elf, module_file

_SYMBOL = re.compile(
    r"(?P<name>[A-Za-z_.$][\w.$]*)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)"
    r"(?: \[(?P<module>[\w-]+)(?: (?P<build_id>[0-9a-f]{16,}))?\])?"  # with CONFIG_STACKTRACE_BUILD_ID
    r"(?P<decoded> \(?[\w./+-]+\.(?:[chS]|rs):\d+)?"  # another program has decoded it
    r"|\[<(?P<address>[0-9a-f]{8,16})>\](?! *(?:\? )?[A-Za-z_])"
)
_STOOD = re.compile(
    r"(?:\b[RE]?IP: ?(?:[0-9a-f]{4}:)?(?:\[<[0-9a-f]+>\]\s*)*|\bPC is at |\be?pc : ?"
    r"|\bat \S+:\d+ |\bPID: \d+ at |\bWARNING: (?:\S+:\d+ )?at )$"
)
"""Text before the address that the CPU was at: "RIP: 0010:", "pc : ", and the place of a WARN.

Other addresses are those that calls return to; the call itself ends one byte before. What precedes them does
not matter: a time, the name of a machine, the marks of a quotation.
"""
_OFFSET = re.compile(r"Kernel Offset: 0x([0-9a-f]+) from")

_MANGLED = re.compile(r"_R[\w.]+$|_ZN\w+17h[0-9a-f]{16}E")
"""A name of Rust; see the chapters on symbol mangling in The rustc book."""

_ABOVE = 1 << 64
"""More than any size in bytes."""

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


Tell = Callable[[str], None]


def ignore(_note: str) -> None:
    """Ignore a note."""


def decode(
    text: str, kernel: Kernel, deadline: Deadline, *, slide: int | None = None, tell: Tell = ignore
) -> str:
    """Return a kernel's messages with the source lines of their addresses.

    Args:
        text: An oops or warning, or a whole log.
        kernel: The kernel that printed it.
        deadline: When to give up.
        slide: Bytes by which KASLR moved the kernel, for addresses without names; None takes them from the
            text.
        tell: Called with each note for the user: a module is of another build.

    Returns:
        The text, with `(FILE:LINE)` after each `symbol+0x12/0x34` and each bare `[<address>]` that was found.
        Paths start in the kernel's tree. Inlined code, the innermost function first, becomes `(FILE:LINE in
        FUNCTION, FILE:LINE)`. Without a source line, a bare address gets `(symbol+0x12/0x34)`. The mangled
        names of Rust are demangled. The instructions of a "Code:" line follow it, see `code_bytes`.

    Raises:
        HostError: there are no binutils.
        BuildError: binutils cannot read a file.
        DeadlineError: it took too long.
    """
    codes = code_bytes.find(text)
    if kernel.vmlinux is None or not (codes or _SYMBOL.search(text)):
        return text
    if slide is None:
        said = _OFFSET.search(text)
        slide = int(said[1], 16) if said else 0
    with _Binaries(kernel.vmlinux, kernel.module_files(), deadline, tell) as binaries:
        spots = {found: _spot(found, binaries, slide) for found in _SYMBOL.finditer(text)}
        lines = binaries.lines({spot for spot in spots.values() if spot is not None})
        rust = binaries.demangled({found["name"] for found in spots if _MANGLED.match(found["name"] or "")})
        edits = [edit for found, spot in spots.items() for edit in _edits(found, spot, lines, rust)]
        for found, spot in spots.items():
            address = int(found["address"] or "0", 16) - slide
            if spot is not None and not lines.get(spot) and address > 0:
                edits.append(_Edit(found.end(), found.end(), _bracketed(binaries.symbols("").at(address))))
        machine = arch.by_name(kernel.arch)
        linked = {found.start(): spot.address for found, spot in spots.items() if spot and not spot.module}
        for code in codes:
            at = linked.get(code.spot, 0)
            shown = code_bytes.disassembled(code, machine, deadline, at=at, named=binaries.symbols("").at)
            edits.append(_Edit(code.end, code.end, f"\n{shown}" if shown else ""))
    return _edited(text, edits)


class _Edit(NamedTuple):
    """Text to put in place of what is between two offsets."""

    start: int
    end: int
    text: str


def _edits(
    found: re.Match[str], spot: _Spot | None, lines: Mapping[_Spot, list[_Line]], rust: Mapping[str, str]
) -> Iterator[_Edit]:
    """Yield what changes at an address: its name, if that is mangled, and its source lines."""
    if found["name"] in rust:
        yield _Edit(found.start("name"), found.end("name"), rust[found["name"]])
    if spot is not None and lines.get(spot):
        yield _Edit(found.end(), found.end(), _bracketed(_shown(lines[spot])))


def _bracketed(text: str) -> str:
    return f" ({text})" if text else ""


def _edited(text: str, edits: Iterable[_Edit]) -> str:
    out, at = [], 0
    for edit in sorted(edits):
        out += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join([*out, text[at:]])


def _spot(found: re.Match[str], binaries: _Binaries, slide: int) -> _Spot | None:
    """Return the file, section and address of a match; None if unknown."""
    before = found.string[found.string.rfind("\n", 0, found.start()) + 1 : found.start()]
    if found["decoded"]:
        return None
    if found["address"]:
        return _Spot("", "", int(found["address"], 16) - slide - 1)
    offset, size = int(found["offset"], 16), int(found["size"], 16)
    if offset > size:
        return None  # of no function: a character was lost or doubled on the way
    module = (found["module"] or "").replace("-", "_")
    if binaries.is_other(module, found["build_id"] or ""):
        return None
    symbol = binaries.symbols(module).find(found["name"], size)
    if symbol is None or not binaries.symbols(module).reaches(symbol, offset):
        return None
    returned = offset > 0 and _STOOD.search(before) is None
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
        number = bisect.bisect(self._functions, (address, _ABOVE, "")) - 1
        start, size, name = self._functions[number] if number >= 0 else (0, 0, "")
        return f"{name}+{address - start:#x}/{size:#x}" if address < start + size else ""

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
    def _functions(self) -> list[tuple[int, int, str]]:
        """The functions, sorted: address, size in bytes, name."""
        rows = itertools.chain.from_iterable(self._rows.values())
        found = ((row, self._FUNCTION.match(row)) for row in rows)
        return sorted(
            (int(each[1], 16), int(each[2], 16), row[row.rfind(" ") + 1 :]) for row, each in found if each
        )

    @functools.cached_property
    def _addresses(self) -> dict[str, list[int]]:
        addresses = defaultdict(list)
        for symbol in self._parsed(itertools.chain.from_iterable(self._rows.values())):
            addresses[symbol.section].append(symbol.address)
        return addresses


class _Binaries:
    """vmlinux and the modules' files; a context manager that removes the unpacked ones."""

    def __init__(
        self, vmlinux: Path, modules: tuple[Path, ...], deadline: Deadline, tell: Tell = ignore
    ) -> None:
        self._vmlinux = vmlinux
        self._modules = modules
        self._deadline = deadline
        self._tell = tell
        self._others: dict[tuple[str, str], bool] = {}
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

    def is_other(self, module: str, build_id: str) -> bool:
        """Whether a module's file is of another build than the module that the kernel had; tell it once.

        Args:
            module: Its name; "" for vmlinux.
            build_id: The build-id in the text; "" if it has none.
        """
        key = module, build_id
        if key not in self._others:
            file = self._file(module) if module and build_id else None
            ours = elf.build_id_of(file) if file is not None else ""
            self._others[key] = bool(ours) and ours != build_id
            if self._others[key]:
                self._tell(f"{file} is of another build: its build-id is {ours}, in the text {build_id}")
        return self._others[key]

    def demangled(self, names: Iterable[str]) -> dict[str, str]:
        """Return Rust's own form of mangled names."""
        mangled = sorted(names)
        if not mangled:
            return {}
        said = self._ask("c++filt", "--format=rust", stdin="".join(f"{each}\n" for each in mangled).encode())
        return dict(zip(mangled, said.splitlines(), strict=True))

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
        said = self._ask("addr2line", "-a", "-f", "-i", "-C", *options, "-e", file or "", stdin=addresses)
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
        if path is None or not module_file.is_packed(path):
            return path
        if self._scratch is None:
            self._scratch = Path(
                self._held.enter_context(tempfile.TemporaryDirectory(prefix="vmdebug-decode-"))
            )
        unpacked = self._scratch / path.stem
        try:
            if not unpacked.exists():
                unpacked.write_bytes(module_file.read(path))
        except ValueError:
            return None  # a damaged module is one without symbols
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
