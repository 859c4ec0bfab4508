"""Finds the files of kernel modules, compressed or not. Does not import GDB."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import vmd_elf

ENDINGS = (".ko.debug", ".ko", ".ko.xz", ".ko.zst", ".ko.gz")
"""In order of preference within one directory: a .debug file has the symbols that strip has removed."""

NOTE = ".note.gnu.build-id"


def module_name(file: str) -> str | None:
    """Return the kernel's name of the module in a file; None if it is not a module file."""
    for ending in ENDINGS:
        if file.endswith(ending):
            # The kernel replaces the dashes of file names.
            return file.removesuffix(ending).replace("-", "_")
    return None


def index(places: Iterable[Path]) -> dict[str, Path]:
    """Return the module files below directories, or named ones, by module name; earlier places win."""
    found: dict[str, Path] = {}
    for place in places:
        one = ((str(place.parent), [place.name]),) if place.is_file() else _walk(place)
        for parent, files in one:
            for file in sorted(files, key=_rank):
                name = module_name(file)
                if name is not None:
                    found.setdefault(name, Path(parent, file))
    return found


def _walk(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each directory below one, with its files; each once, whatever the number of links to it.

    NixOS links the modules of several packages into one directory. Skip `build` and `source`: they link to
    the tree that the kernel was built from; see modules_install in its Makefile.
    """
    seen: set[str] = set()
    for parent, below, files in os.walk(directory, followlinks=True):
        here = os.path.realpath(parent)
        below[:] = [] if here in seen else sorted({*below} - {"build", "source"})
        if here not in seen:
            seen.add(here)
            yield parent, files


def unpacked(path: Path, directory: Path) -> Path:
    """Return the ELF file of a module.

    Args:
        path: The module file, compressed or not.
        directory: Directory for a decompressed file.

    Raises:
        OSError: it cannot be read, or the program that decompresses it is missing.
        ValueError: it is damaged.
    """
    if path.suffix not in (".xz", ".zst", ".gz"):
        return path
    to = directory / path.stem
    if path.suffix == ".zst":
        # Python has a zstd module since 3.14.
        import shutil  # noqa: PLC0415 - needed only for compressed modules
        import subprocess  # noqa: PLC0415

        zstd = shutil.which("zstd")
        if zstd is None:
            raise FileNotFoundError(
                f"{path} is compressed with zstd, and zstd is not on PATH: apt install zstd"
            )
        done = subprocess.run([zstd, "-dcq", str(path)], capture_output=True, check=False)
        if done.returncode != 0:
            raise ValueError(done.stderr.decode(errors="replace").strip())
        to.write_bytes(done.stdout)
        return to
    _unpack(path, to)
    return to


def build_id(path: Path) -> str:
    """Return a module's GNU build-id in hex; "" if it has none.

    Raises:
        ValueError: it is not an ELF file, or is damaged.
    """
    note = vmd_elf.sections(str(path)).get(NOTE)
    return vmd_elf.build_id(vmd_elf.content(str(path), note)) if note is not None else ""


def allocated(path: Path) -> list[str]:
    """Return the names of a module's sections that occupy memory."""
    return [
        section.name for section in vmd_elf.sections(str(path)).values() if section.allocated and section.size
    ]


def _unpack(path: Path, to: Path) -> None:
    import gzip  # noqa: PLC0415 - needed only for compressed modules
    import lzma  # noqa: PLC0415
    import shutil  # noqa: PLC0415
    import zlib  # noqa: PLC0415

    opens = lzma.open if path.suffix == ".xz" else gzip.open
    try:
        with opens(path) as packed, to.open("wb") as file:
            shutil.copyfileobj(packed, file)
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: {error}") from error


def _rank(file: str) -> int:
    return next((rank for rank, ending in enumerate(ENDINGS) if file.endswith(ending)), len(ENDINGS))
