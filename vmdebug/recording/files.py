"""The names of the files in a recording's directory; no I/O."""

from __future__ import annotations

from pathlib import Path

ENDING = ".vmdrec"
"""The ending of a recording's directory, and of the file that `pack` makes."""


def log(directory: Path) -> Path:
    """QEMU's log."""
    return directory / "rr.log"


def manifest(directory: Path) -> Path:
    """The file with its `manifest.Manifest`."""
    return directory / "manifest.json"


def ended(directory: Path) -> Path:
    """The file with its `manifest.Ended`."""
    return directory / "ended.json"


def line(directory: Path, name: str) -> Path:
    """A serial line, as QEMU's chardev `pipe` takes it: NAME.in is a FIFO, NAME.out has the output."""
    return directory / name


def typed(directory: Path, name: str) -> Path:
    """The FIFO for a serial line's input."""
    return directory / f"{name}.in"


def console(directory: Path) -> Path:
    """The serial log of the guest, from its first byte."""
    return directory / "console.out"


def state(directory: Path) -> Path:
    """The memory and devices that the guest began with, if it did not boot."""
    return directory / "state"


LINES = ("console", "shell")
"""The serial lines of a recorded guest."""
