"""The symbols that a kernel carries, in the layouts of scripts/kallsyms.c, and a vmlinux with them."""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path

import pytest

from tests.unit import kernelfiles
from vmdebug import kimage, process
from vmdebug.deadline import Deadline
from vmdebug.kimage import kallsyms, symtab
from vmdebug.kimage.kallsyms import Symbol

TEXT = 0xFFFFFFFF81000000
RODATA = 0xFFFFFFFF81800000
LAYOUTS = ("before", "before, with seqs", "after", "relative to their places")


def made(count: int = 1500) -> list[Symbol]:
    """Symbols as in a kernel: per-CPU ones near 0, then the text; one name is longer than 127 bytes."""
    rng = random.Random(count)  # noqa: S311 - the same names each time
    names = [f"func_{number}.{rng.choice('abcxyz')}" for number in range(count)]
    names[700] = "__long_" + "x" * 200
    per_cpu = [Symbol(f"per_cpu_{number}", "A", number * 64) for number in range(20)]
    steps = itertools.accumulate((rng.randint(1, 900) for _ in names), initial=TEXT)
    functions = [
        Symbol(name, rng.choice("Tt?WdB"), at) for name, at in zip(names, list(steps)[:count], strict=True)
    ]
    return [*per_cpu, Symbol("_text", "T", TEXT), *functions]


def tables(symbols: list[Symbol], layout: str, *, per_cpu: bool = True) -> bytes:
    """Return a `.rodata` at RODATA with the tables of kallsyms, and other data around them."""
    tokens = [bytes([each]) for each in range(256)]
    for unused, longer in zip(
        range(128, 140), (b"func_", b"per_cpu_", b"xxxxxxxxxxxxxxxxxxxx"), strict=False
    ):
        tokens[unused] = longer
    # Token 0 can't be empty bytes in the table, and no name has these.
    tokens[0] = b"__"
    names, markers = b"", []
    for number, symbol in enumerate(symbols):
        if number % 256 == 0:
            markers.append(len(names))
        text = symbol.kind.encode() + symbol.name.encode()
        packed = text.replace(b"func_", b"\x80").replace(b"per_cpu_", b"\x81")
        length = len(packed)
        names += bytes([length] if length < 128 else [length & 127 | 128, length >> 7]) + packed
    token_table = b"".join(token + b"\0" for token in tokens)
    index = struct.pack("<256H", *([0, *itertools.accumulate(len(token) + 1 for token in tokens)][:256]))
    parts = {
        "count": struct.pack("<I", len(symbols)),
        "names": names,
        "markers": struct.pack(f"<{len(markers)}I", *markers),
        "seqs": b"\1\2\3" * len(symbols),
        "tokens": token_table,
        "index": index,
        "offsets": b"",
        "base": struct.pack("<Q", TEXT),
    }
    table = ["count", "names", "markers", "tokens", "index"]
    order = {
        "before": ["offsets", "base", *table],
        "before, with seqs": ["offsets", "base", *table[:3], "seqs", *table[3:]],
        "after": [*table, "offsets", "base", "seqs"],
        "relative to their places": [*table, "offsets", "seqs"],
    }[layout]
    align = 4 if layout == "relative to their places" else 8
    out = bytearray(b"other data\0" * 1000)
    for part in order:
        out += bytes(-len(out) % align)
        if part == "offsets":
            out += _offsets(symbols, layout, RODATA + len(out), per_cpu=per_cpu)
        else:
            out += parts[part]
    return bytes(out + b"0\0001\0002\0003\0" * 50)


def _offsets(symbols: list[Symbol], layout: str, at: int, *, per_cpu: bool) -> bytes:
    if layout == "relative to their places":
        numbers = [symbol.address - (at + 4 * number) for number, symbol in enumerate(symbols)]
    elif per_cpu:
        numbers = [
            symbol.address if symbol.address < TEXT else TEXT - 1 - symbol.address for symbol in symbols
        ]
    else:
        numbers = [symbol.address - TEXT for symbol in symbols]
    return struct.pack(f"<{len(numbers)}i", *numbers)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(layout: str) -> None:
    symbols = made()
    relative = layout == "relative to their places"
    wanted = [each for each in symbols if each.address >= TEXT] if relative else symbols
    assert kallsyms.symbols(tables(wanted, layout), RODATA, TEXT) == wanted


def test_without_absolute_per_cpu_symbols() -> None:
    symbols = [each for each in made() if each.address >= TEXT]
    assert kallsyms.symbols(tables(symbols, "after", per_cpu=False), RODATA, TEXT) == symbols


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_that_are_damaged_or_of_another_kernel_give_none(layout: str) -> None:
    symbols = [each for each in made() if each.address >= TEXT]
    whole = tables(symbols, layout)
    assert kallsyms.symbols(whole, RODATA, TEXT + 4096) == []
    for cut in range(0, len(whole), len(whole) // 40):
        assert kallsyms.symbols(whole[:cut], RODATA, TEXT) in ([], symbols)
    at = whole.index(symbols[300].name.encode().replace(b"func_", b"\x80"))
    assert kallsyms.symbols(whole[:at] + b"\0\0\xff" + whole[at + 3 :], RODATA, TEXT) != symbols
    assert kallsyms.symbols(b"", RODATA, TEXT) == []


def test_a_vmlinux_with_them(tmp_path: Path) -> None:
    source, stripped, file = (tmp_path / name for name in ("main.c", "stripped", "vmlinux"))
    source.write_text(
        "static int hidden;\nint f(void) { return hidden; }\nint _start(void) { return f(); }\n"
    )
    gcc: list[str | Path] = [
        "gcc",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id",
        "-o",
        stripped,
        source,
    ]
    process.run(gcc, deadline=soon())
    rows = [row.split() for row in process.run(["nm", stripped], deadline=soon()).stdout.splitlines()]
    symbols = [Symbol(name, kind, int(address, 16)) for address, kind, name in rows]
    process.run(["strip", stripped], deadline=soon())
    file.write_bytes(symtab.with_symbols(stripped.read_bytes(), symbols))
    again = [row.split() for row in process.run(["nm", file], deadline=soon()).stdout.splitlines()]
    assert {(name, int(at, 16)) for at, _, name in again} == {(each.name, each.address) for each in symbols}
    assert {kind.islower() for _, kind, name in again if name == "hidden"} == {True}
    listed = process.run(["readelf", "-sSW", file], deadline=soon())
    assert "Warning" not in listed.stdout + listed.stderr
    assert " FUNC    GLOBAL DEFAULT" in listed.stdout


def test_an_image_without_kallsyms_has_none(tmp_path: Path) -> None:
    image = kernelfiles.image(tmp_path / "bzImage", kernelfiles.vmlinux(tmp_path / "vmlinux"))
    assert kimage.own_symbols(image) is None
    assert kimage.own_symbols(image) is None  # from the cache


def soon() -> Deadline:
    return Deadline.after(60)
