"""Reads kernel configurations: from a .config, or from a kernel's tree, package or vmlinux."""

from __future__ import annotations

import gzip
import mmap
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from vmdebug.errors import UsageError
from vmdebug.guest import Kernel
from vmdebug.paths import or_false

_START, _END = b"IKCFG_ST", b"IKCFG_ED"
"""Markers around the compressed .config in a kernel with CONFIG_IKCONFIG=y; see kernel/configs.c."""

_LARGEST = 4 << 20

_LINE = re.compile(r"^(CONFIG_\w+)=(.*)$|^# (CONFIG_\w+) is not set$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A kernel's options.

    Args:
        origin: Where they were found, for messages.
        options: Their values by name, with CONFIG_; an option that is off may be "n" or absent.
    """

    origin: str
    options: dict[str, str]

    def value(self, option: str) -> str:
        """Return the value of an option, without CONFIG_; "n" if it is off."""
        return self.options.get(f"CONFIG_{option}", "n")


def options(text: str) -> dict[str, str]:
    """Return the options in the text of a .config or fragment; "n" for those that it turns off."""
    return {name or off: value if name else "n" for name, value, off in _LINE.findall(text)}


def read(path: Path) -> dict[str, str]:
    """Return the options of a .config.

    Raises:
        UsageError: it is not a configuration, or cannot be read.
    """
    found = options(text_of(path))
    if not found:
        raise UsageError(
            f"{path} is not a kernel configuration: it has no CONFIG_… line", hint="give a kernel's .config"
        )
    return found


def text_of(path: Path) -> str:
    """Return the text of a .config, compressed with gzip or not.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        return data.decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="give a kernel's .config") from error


def find(words: str) -> Path | None:
    """Return the .config that a path names, or that of a tree which is not built yet; None otherwise."""
    path = Path(words).expanduser()
    if or_false(path.is_file) and _is_config(path):
        return path
    config = path / ".config"
    return config if or_false(config.is_file) and not or_false((path / "vmlinux").is_file) else None


def of(kernel: Kernel) -> Configuration | None:
    """Return the configuration of a kernel; None if it is unknown."""
    for path in _files(kernel):
        if or_false(path.is_file):
            return Configuration(str(path), options(path.read_text(errors="replace")))
    text = inside(kernel.vmlinux).decode(errors="replace") if kernel.vmlinux is not None else ""
    return Configuration(f"the .config inside {kernel.vmlinux}", options(text)) if text else None


def inside(vmlinux: Path) -> bytes:
    """Return the .config inside a kernel with CONFIG_IKCONFIG=y; empty if it has none."""
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
    """Return the names of the modules that a kernel has built in, from `modules.builtin`."""
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


def _is_config(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1 << 16)
    return start.startswith(b"\x1f\x8b") or b"\nCONFIG_" in start or b"is not set\n" in start
