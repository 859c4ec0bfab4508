"""Whether modules belong to a kernel, according to their vermagic.

The vermagic is the release and the options that change the layout of modules. The kernel refuses a module
with another vermagic: see `same_magic` in kernel/module.
"""

from __future__ import annotations

import io
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmdebug import paths
from vmdebug.filecache import cached
from vmdebug.guest import Kernel
from vmdebug.kimage import module_file

SAMPLES = 5
"""How many modules to read: all modules of a build have the same vermagic."""

_VERMAGIC = re.compile(rb"vermagic=([^\0]{1,300})\0")


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
    wanted = of_kernel(kernel)
    if wanted:
        module = next((each for each, magic in said.items() if magic != wanted), next(iter(said)))
        return Modules(len(found), said[module], module, wanted, belong=said[module] == wanted)
    ours = kernel.release
    module = next((each for each, magic in said.items() if magic.split(" ")[0] != ours), next(iter(said)))
    other = bool(ours) and said[module].split(" ")[0] != ours
    return Modules(len(found), said[module], module, ours, belong=False if other else None)


def vermagic(module: Path) -> str:
    """Return the vermagic of a module, compressed or not; "" if it has none or cannot be decompressed."""
    found = _VERMAGIC.search(content(module))
    return found[1].decode(errors="replace") if found else ""


def stripped(kernel: Kernel) -> bool:
    """Return whether the modules of a kernel have no debug information, according to one of them.

    False if there are none, or it cannot be decompressed.
    """
    places = kernel.module_files()
    first = next(paths.modules(places[0]), None) if places else None
    data = content(first) if first is not None else b""
    return bool(data) and not has_debug_info(data)


def fits(magic: str, wanted: str, *, has_versions: bool) -> bool:
    """Return whether a kernel accepts a module.

    With CONFIG_MODVERSIONS the kernel compares the versions of symbols rather than the release: see
    `same_magic` in kernel/module.

    Args:
        magic: The vermagic of the module.
        wanted: That of the kernel, or only its release.
        has_versions: See `has_versions`.
    """
    if " " not in wanted:
        return has_versions or magic.split(" ", maxsplit=1)[0] == wanted
    if has_versions:
        return magic.partition(" ")[2] == wanted.partition(" ")[2]
    return magic == wanted


def has_versions(module: Path) -> bool:
    """Return whether a module has the versions of the symbols that it uses."""
    return b"\0__versions\0" in content(module)


def is_loadable(module: Path) -> bool:
    """Return whether a module file has its code: `objcopy --only-keep-debug` leaves only symbols.

    According to struct module, which the kernel requires; in a file of symbols that section has no bytes.
    """
    from elftools.common.exceptions import ELFError  # noqa: PLC0415 - slow to import, and rarely needed
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - as above

    try:
        section = ELFFile(io.BytesIO(content(module))).get_section_by_name(".gnu.linkonce.this_module")
    except ELFError:
        return False
    return section is not None and section["sh_type"] == "SHT_PROGBITS"


def has_debug_info(module: bytes) -> bool:
    """Return whether a module has debug information."""
    # The name of the section, in the section header string table; see elf(5).
    return b".debug_info\0" in module


def content(module: Path) -> bytes:
    """Return a module, decompressed; b"" if that fails."""
    try:
        return module_file.read(module)
    except (OSError, ValueError):
        return b""


def of_kernel(kernel: Kernel) -> str:
    """Return the vermagic that a kernel expects of its modules; "" if its vmlinux has none.

    VERMAGIC_STRING of include/linux/vermagic.h: the release, then words, each followed by a blank.
    """
    vmlinux, release = kernel.vmlinux, kernel.release
    if vmlinux is None or not release or not vmlinux.stat().st_size:
        return ""
    # Looking through a vmlinux of 800 MB takes seconds.
    return cached(vmlinux, f"vermagic {release}", _Magic, lambda: _Magic(_read_magic(vmlinux, release))).text


class _Magic(msgspec.Struct, frozen=True):
    text: str


def _read_magic(vmlinux: Path, release: str) -> str:
    magic = re.compile(rb"\0(" + re.escape(release.encode()) + rb" (?:[^\0 ]{1,60} ){1,9})\0")
    with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = magic.search(content)
        return found[1].decode(errors="replace") if found else ""


def _files(directory: Path) -> list[Path]:
    """Return all modules below a directory; a build tree has a list of them in modules.order."""
    order = directory / "modules.order"
    if order.is_file():
        named = [directory / line for line in order.read_text().split()]
        found = [each for path in named if (each := path.with_suffix(".ko")).is_file()]
        if found:
            return found
    return [each for each in paths.modules(directory) if each.suffix != ".debug"]
