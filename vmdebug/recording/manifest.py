"""The files of a recording that describe it: frozen values in JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from vmdebug import guest
from vmdebug.errors import UsageError
from vmdebug.guest import LaunchSpec
from vmdebug.process import ProcessRef

LAYOUT = 1
"""Increase it with every change of `Manifest` that an older vmdebug would misread."""

SHIFT = 6
"""The guest's time for one instruction is 2^6 ns: a log of a tenth of that with `shift=auto`."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A file that the guest was started with.

    Args:
        original: Where it was, as QEMU's command line names it.
        name: Its name in the recording; "": it is only named.
        bytes: Its size.
        sha256: Its hash in hex; "" if it was too big to be read at the start.
        writable: Whether the guest could write to it.
    """

    original: Path
    name: str
    bytes: int
    sha256: str = ""
    writable: bool = False


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording is of; written when it begins.

    Args:
        layout: Layout of the file; see `LAYOUT`.
        id: A number that no other recording has, in hex.
        created_at: When it began, in seconds since the epoch.
        spec: What was started.
        argv: QEMU's command line.
        run: The run directory in that command line.
        qemu: The version of QEMU: "7.2.22".
        qemu_file: The emulator.
        log_version: The version of QEMU's log; see `event_log`.
        shift: The guest's time for one instruction is 2^shift ns.
        begin: The instruction count at which it began with the memory and devices of `files.state`; 0: it
            booted.
        process: The QEMU that records.
        files: The kernel, the initramfs, the disks, the symbols.
    """

    layout: int = LAYOUT
    id: str
    created_at: float
    spec: LaunchSpec
    argv: tuple[str, ...]
    run: Path
    qemu: str
    qemu_file: Path
    log_version: int
    shift: int = SHIFT
    begin: int = 0
    process: ProcessRef | None = None
    files: tuple[Kept, ...] = ()


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a recording once it has ended.

    Args:
        icount: The instruction count at its end.
        seconds: The guest's time at its last message with a time stamp; 0.0 if there is none.
        complete: Whether QEMU wrote the end of its log. Otherwise it was killed, and the last moments are
            lost.
        log_bytes: The size of QEMU's log.
        console_bytes: The size of the serial log.
        sha256: The hash of QEMU's log.
        slide: By how many bytes KASLR has moved the kernel; None: not known before the first replay.
    """

    icount: int
    seconds: float
    complete: bool
    log_bytes: int
    console_bytes: int
    sha256: str
    slide: int | None = None


class _Layout(msgspec.Struct, frozen=True):
    layout: int


T = TypeVar("T", bound=msgspec.Struct)


def read(path: Path) -> Manifest:
    """Return a recording's manifest.

    Raises:
        UsageError: the file is missing or damaged, or has another layout.
    """
    try:
        data = path.read_bytes()
        layout = msgspec.json.decode(data, type=_Layout).layout
        if layout == LAYOUT:
            return guest.decode(data, Manifest)
    except OSError as error:
        raise UsageError(
            f"{path.parent} is no recording: it has no {path.name}", hint="list them: vmdebug recording list"
        ) from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is damaged: {error}", hint="record the guest again") from error
    raise UsageError(
        f"{path} has layout {layout}, and this vmdebug reads layout {LAYOUT}",
        hint="use the vmdebug that recorded it",
    )


def read_ended(path: Path) -> Ended | None:
    """Return what is known about a recording that has ended; None before."""
    try:
        return guest.decode(path.read_bytes(), Ended)
    except (OSError, msgspec.MsgspecError):
        return None
