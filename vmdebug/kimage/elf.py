"""Reads ELF files with pyelftools, and turns its exceptions into errors for the user."""

from __future__ import annotations

import contextlib
import itertools
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from vmdebug import arch
from vmdebug.errors import HostError, UsageError
from vmdebug.kimage.packed import BadImageError, Unpacked

# Limits that protect from damaged and malicious files; no kernel reaches them.
_MOST_NOTES = 256
_LARGEST_NOTES = 64 << 10


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file.

    Raises:
        UsageError: it is not a regular file, or cannot be read.
        HostError: this user may not read it.
    """
    try:
        # Check before opening: open() of a pipe would wait for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is not a regular file", hint="give the file itself")
        stream = path.open("rb")
    except PermissionError as error:
        raise HostError(
            f"{path} may not be read", hint="copy it to where you can read it, or run as its owner"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path} cannot be read: {reason}", hint="is the path right?") from error
    with stream:
        yield stream


def parse(path: Path, stream: IO[bytes] | Unpacked) -> Any:
    """Return pyelftools' `ELFFile` of a stream.

    Args:
        path: The file, for messages.
        stream: Its content, or the kernel inside it.

    Raises:
        UsageError: it is damaged.
        BadImageError: it cannot be unpacked.
    """
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - slow to import, and rarely needed: the result is cached

    try:
        return ELFFile(cast("IO[bytes]", stream))
    except BadImageError:
        raise
    except Exception as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UsageError:
    """Return the error for a damaged file, for which pyelftools may raise any exception."""
    return UsageError(
        f"{path} is damaged: {str(error) or type(error).__name__}",
        hint="build or copy it again; was it cut off?",
    )


def arch_of(path: Path, machine: str) -> str:
    """Return the name of the architecture with that `e_machine`.

    Raises:
        UsageError: vmdebug does not support it.
    """
    try:
        return arch.by_elf_machine(machine).name
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error


def build_id(elf: Any) -> str:
    """Return the GNU build-id. In a kernel, the notes of Xen come before it."""
    tables = itertools.chain(elf.iter_segments(type="PT_NOTE"), elf.iter_sections(type="SHT_NOTE"))
    notes = itertools.chain.from_iterable(table.iter_notes() for table in tables if _plausible(table))
    for note in itertools.islice(notes, _MOST_NOTES):
        if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
            return str(note["n_desc"])
    return ""


def build_id_of(path: Path) -> str:
    """Return the GNU build-id of an ELF file; "" if it has none.

    Raises:
        UsageError: it is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """
    with opened(path) as stream:
        return build_id(parse(path, stream))


def _plausible(table: Any) -> bool:
    header = table.header
    return int(header["p_filesz"] if "p_filesz" in header else header["sh_size"]) <= _LARGEST_NOTES


def has_bytes(section: Any) -> bool:
    """Return whether a section exists, and its bytes are in the file."""
    # `objcopy --only-keep-debug` keeps only the headers of other sections.
    return section is not None and section["sh_type"] != "SHT_NOBITS" and section["sh_size"] > 0
