"""Whether modules belong to a kernel, according to their vermagic.

The vermagic is the release and the options that change the layout of modules. The kernel refuses a module
with another vermagic: see `same_magic` in kernel/module.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmdebug import paths
from vmdebug.guest import Kernel

SAMPLES = 5
"""How many modules to read: all modules of a build have the same vermagic."""

_VERMAGIC = re.compile(rb"vermagic=([^\0]{1,300})\0")
_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".bz2": bz2.decompress,
}


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules in a directory.

    Args:
        count: How many modules there are.
        vermagic: That of the first module that does not belong to the kernel, or else of the first one; "" if
            none has any.
        which: The module with that vermagic.
        wanted: The kernel's vermagic; only its release if that is all that is known; "" if nothing is known.
        belong: Whether the modules belong to the kernel; None if that is unknown.
    """

    count: int
    vermagic: str = ""
    which: Path | None = None
    wanted: str = ""
    belong: bool | None = None


def look(kernel: Kernel) -> Modules:
    """Return what is known of the modules of a kernel, from a few of them."""
    found = _files(kernel.modules) if kernel.modules is not None else []
    said = {each: magic for each in found[:: max(1, len(found) // SAMPLES)] if (magic := vermagic(each))}
    if not said:
        return Modules(len(found))
    wanted = _of_kernel(kernel)
    if wanted:
        module = next((each for each, magic in said.items() if magic != wanted), next(iter(said)))
        return Modules(len(found), said[module], module, wanted, belong=said[module] == wanted)
    ours = kernel.release
    module = next((each for each, magic in said.items() if magic.split(" ")[0] != ours), next(iter(said)))
    other = bool(ours) and said[module].split(" ")[0] != ours
    return Modules(len(found), said[module], module, ours, belong=False if other else None)


def vermagic(module: Path) -> str:
    """Return the vermagic of a module, compressed or not; "" if it has none or cannot be decompressed."""
    found = _VERMAGIC.search(_content(module))
    return found[1].decode(errors="replace") if found else ""


def stripped(kernel: Kernel) -> bool:
    """Return whether the modules of a kernel have no debug information, according to one of them.

    False if there are none, or it cannot be decompressed.
    """
    first = next(_walked(kernel.modules), None) if kernel.modules is not None else None
    content = _content(first) if first is not None else b""
    # The name of the section, in the section header string table; see elf(5).
    return bool(content) and b".debug_info\0" not in content


def _content(module: Path) -> bytes:
    """Return a module, decompressed; b"" if that fails."""
    unpack = _UNPACK.get(module.suffix, _zstd)
    try:
        return unpack(module.read_bytes())
    except (OSError, EOFError, ValueError, lzma.LZMAError):
        return b""


def _zstd(packed: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - few modules use it

    try:
        return zstandard.ZstdDecompressor().stream_reader(packed).read()
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _of_kernel(kernel: Kernel) -> str:
    """Return the vermagic that a kernel expects of its modules; "" if its vmlinux has none.

    VERMAGIC_STRING of include/linux/vermagic.h: the release, then words, each followed by a blank.
    """
    if kernel.vmlinux is None or not kernel.release or not kernel.vmlinux.stat().st_size:
        return ""
    magic = re.compile(rb"\0(" + re.escape(kernel.release.encode()) + rb" (?:[^\0 ]{1,60} ){1,9})\0")
    with kernel.vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = magic.search(content)
        return found[1].decode(errors="replace") if found else ""


def _files(directory: Path) -> list[Path]:
    """Return all modules below a directory; a build tree has a list of them in modules.order."""
    order = directory / "modules.order"
    if order.is_file():
        named = [directory / line for line in order.read_text().split()]
        return [each for path in named if (each := path.with_suffix(".ko")).is_file()]
    return list(_walked(directory))


def _walked(directory: Path) -> Iterator[Path]:
    for top, files in paths.walk(directory):
        for name in sorted(files):
            if name.endswith((".ko", ".ko.gz", ".ko.xz", ".ko.zst", ".ko.bz2")):
                yield Path(top, name)
