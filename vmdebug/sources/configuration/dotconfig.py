"""What a kernel was configured with: from its build tree, its package, or out of the kernel itself."""

from __future__ import annotations

import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path

from vmdebug.guest import Kernel
from vmdebug.paths import holds
from vmdebug.sources.configuration import merging

_START, _END = b"IKCFG_ST", b"IKCFG_ED"
"""Around the packed .config of a kernel with CONFIG_IKCONFIG=y; see kernel/configs.c."""

_LARGEST = 4 << 20


@dataclass(frozen=True, slots=True)
class Configuration:
    """A kernel's options.

    Args:
        origin: Where they were found, in words for messages.
        options: Their values by name, with CONFIG_; one that is off may be "n" or absent.
    """

    origin: str
    options: dict[str, str]

    def value(self, option: str) -> str:
        """Return the value of an option, "n" where it is off."""
        return self.options.get(f"CONFIG_{option}", "n")


def of(kernel: Kernel) -> Configuration | None:
    """Return what a kernel was configured with; None where nothing tells."""
    for path in _files(kernel):
        if holds(path.is_file):
            return Configuration(str(path), merging.options(path.read_text(errors="replace")))
    text = inside(kernel.vmlinux).decode(errors="replace") if kernel.vmlinux is not None else ""
    return Configuration(f"the one inside {kernel.vmlinux}", merging.options(text)) if text else None


def inside(vmlinux: Path) -> bytes:
    """Return the .config that kernel/configs.c put into a kernel; nothing where it has none."""
    with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_START)
        end = content.find(_END, start)
        if start < 0 or not 0 < end - start < _LARGEST:
            return b""
        try:
            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(
                content[start + len(_START) : end], _LARGEST
            )
        except zlib.error:
            return b""


def built_in(kernel: Kernel) -> frozenset[str]:
    """Return the names of the modules that a kernel has built in, by `modules.builtin`; none without it."""
    if kernel.modules is None:
        return frozenset()
    lists = (kernel.modules / "modules.builtin", *kernel.modules.glob("*/modules.builtin"))
    lines = (line for path in lists if path.is_file() for line in path.read_text().splitlines())
    return frozenset(Path(line).stem.replace("-", "_") for line in lines)


def _files(kernel: Kernel) -> list[Path]:
    found = []
    if kernel.vmlinux is not None:
        top = kernel.vmlinux.parent
        found += [top / ".config", *sorted(top.glob("lib/modules/*/build/.config"))]
    if kernel.release:
        found.append(kernel.image.parent / f"config-{kernel.release}")
    return found
