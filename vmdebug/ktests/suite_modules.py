"""Which of a kernel's modules have KUnit suites, and which modules those need."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from vmdebug import paths
from vmdebug.sources.kernels import modules

_SECTION = ".kunit_test_suites"
"""Pointers to a module's suites: kunit_test_suites of include/kunit/test.h, since Linux 6.0."""

_CALLED = b"__kunit_test_suites_init\0"
"""What a module calls that has suites, before Linux 6.0."""

_NAME_BYTES = 256
"""`char name[256]`, the first member of struct kunit_suite."""

_LIKELY = re.compile(r"kunit|test")
"""In the names of such modules; see Documentation/dev-tools/kunit/style.rst."""

_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
_NAME = re.compile(rb"[\w. +-]+")


@dataclass(frozen=True, slots=True)
class SuiteModule:
    """A module with suites.

    Args:
        name: Its name, as in /sys/module.
        file: Its file.
        suites: The names of its suites; empty if they cannot be read: the module is older than Linux 6.0.
    """

    name: str
    file: Path
    suites: tuple[str, ...] = ()


def module_name(file: Path) -> str:
    """Return the name of a module's file, as in /sys/module."""
    return file.name.partition(".ko")[0].replace("-", "_")


def every(directory: Path | None) -> Iterator[SuiteModule]:
    """Yield the modules below a directory that have suites; none for None."""
    for file in paths.modules(directory) if directory is not None else ():
        if _LIKELY.search(file.name) and (found := look(file)) is not None:
            yield found


def look(file: Path) -> SuiteModule | None:
    """Return what is known of a module, compressed or not; None if it has no suites."""
    content = modules.content(file)
    suites = _suites(content)
    if suites or _CALLED in content:
        return SuiteModule(module_name(file), file, suites)
    return None


def needed(file: Path, directory: Path | None) -> tuple[Path, ...]:
    """Return the files of the modules that a module needs, in the order to load them, without itself.

    Args:
        file: The module.
        directory: Where the kernel's other modules are.
    """
    files = {module_name(each): each for each in paths.modules(directory)} if directory is not None else {}
    found: dict[Path, None] = {}

    def add(of: Path) -> None:
        said = _DEPENDS.search(modules.content(of))
        for name in said[1].decode().split(",") if said and said[1] else ():
            other = files.get(name.replace("-", "_"))
            if other is not None and other not in found:
                add(other)
                found[other] = None

    add(file)
    return tuple(found)


def _suites(content: bytes) -> tuple[str, ...]:
    """Return the names of the suites that a module's pointers lead to, by their relocations."""
    if _SECTION.encode() not in content:
        return ()
    try:
        elf = ELFFile(io.BytesIO(content))
        pointers = elf.get_section_by_name(f".rela{_SECTION}") or elf.get_section_by_name(f".rel{_SECTION}")
        if not isinstance(pointers, RelocationSection):
            return ()
        symbols = elf.get_section(pointers["sh_link"])
        assert isinstance(symbols, SymbolTableSection)  # noqa: S101 - by the ELF specification
        found = []
        for each in pointers.iter_relocations():
            symbol = symbols.get_symbol(each["r_info_sym"])
            section = elf.get_section(symbol["st_shndx"])
            start = symbol["st_value"] + (each["r_addend"] if each.is_RELA() else 0)
            name = section.data()[start : start + _NAME_BYTES].partition(b"\0")[0]
            if _NAME.fullmatch(name):
                found.append(name.decode())
        return tuple(found)
    except (ELFError, IndexError, KeyError, ValueError, TypeError):
        return ()
