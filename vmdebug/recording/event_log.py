"""Reads the log that QEMU writes while it records a guest; see replay/replay-internal.h of QEMU.

The log is a list of events: a byte with the kind, then a payload of a known size. Numbers are big-endian.
Each event of kind "instructions" says how many instructions ran before the next event, so their sum is the
position of an event: its instruction count, QEMU's icount.

QEMU writes the version of the log at its beginning when it ends. If it was killed, the header is empty, and
the last event may be cut off.
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import msgspec

from vmdebug.errors import UsageError

VERSIONS = (0xE0200C, 0xE0200E)
"""The versions of the log that have the events below: QEMU 7.2 to 10 write the first, 11 the second."""

HEADER = 12
"""Bytes before the first event: the version, and 8 bytes that are not used."""

_INSTRUCTIONS = 0
_CHAR_READ = 7
_NET = 9
_INPUT = 5
_SHUTDOWN = range(10, 22)
_CHAR_WRITE = 22
_READ_ALL = 23
_AUDIO_IN = 26
_RANDOM = 27
_END = 39

_SIZES = {
    _INSTRUCTIONS: 4,
    1: 0,  # interrupt
    2: 0,  # exception
    3: 8,  # bottom half
    4: 8,  # bottom half, once
    6: 0,  # input, end of a group
    8: 8,  # block device
    **dict.fromkeys(_SHUTDOWN, 0),
    _CHAR_WRITE: 8,
    24: 4,  # a character device's error
    25: 8,  # audio out
    28: 8,  # host's clock
    29: 8,  # virtual clock
    **dict.fromkeys(range(30, 39), 0),  # checkpoints
    _END: 0,
}
"""Payloads of a fixed size, in bytes."""

_ARRAYS = {_CHAR_READ: 1, _NET: 5, _READ_ALL: 0, _RANDOM: 4}
"""Payloads that end with an array: the number of bytes before its size."""

_U32 = struct.Struct(">I")


class EventLog(msgspec.Struct, frozen=True, kw_only=True):
    """What a log says.

    Args:
        version: The log's version; 0 if QEMU was killed.
        icount: The instruction count at the end.
        complete: Whether the log has its end: QEMU ended by itself, or by a command.
        size: Bytes up to the end of the last complete event.
        output: The instruction count of each single byte that the guest wrote to a serial port, in order.
        input: The instruction counts at which the guest received input.
        events: How many events there are.
    """

    version: int
    icount: int
    complete: bool
    size: int
    output: array[int]
    input: array[int]
    events: int


def read(path: Path) -> EventLog:
    """Read a log.

    Raises:
        UsageError: it is no log of a QEMU that this vmdebug knows, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="is the recording complete?"
        ) from error
    return parse(data, str(path))


def parse(data: bytes, name: str) -> EventLog:
    """Return what a log says.

    Args:
        data: The log.
        name: Its name, for the error.

    Raises:
        UsageError: see `read`.
    """
    version = _U32.unpack_from(data)[0] if len(data) >= HEADER else 0
    if version not in (0, *VERSIONS):
        raise UsageError(
            f"{name} is a log of version {version:#x}, and vmdebug reads {', '.join(map(hex, VERSIONS))}",
            hint="use QEMU 7.2, 10 or 11",
        )
    at, icount, events, kind = HEADER, 0, 0, -1
    end, unpack = len(data), _U32.unpack_from
    output, typed = array("Q"), array("Q")
    sizes, arrays = _SIZES, _ARRAYS
    while at < end and kind != _END:
        kind = data[at]
        size = sizes.get(kind)
        if size is None:
            before = arrays.get(kind)
            if before is None:
                raise UsageError(
                    f"{name} is damaged: at byte {at} there is no event of a known kind ({kind})",
                    hint="record the guest again",
                )
            if at + 5 + before > end:
                break
            size = before + 4 + unpack(data, at + 1 + before)[0]
        after = at + 1 + size
        if after > end:
            break
        if kind == _INSTRUCTIONS:
            icount += unpack(data, at + 1)[0]
        elif kind == _CHAR_WRITE and unpack(data, at + 5)[0] == 1:
            output.append(icount)
        elif kind == _CHAR_READ:
            typed.append(icount)
        events += 1
        at = after
    return EventLog(
        version=version,
        icount=icount,
        complete=kind == _END and version != 0,
        size=at,
        output=output,
        input=typed,
        events=events,
    )


def repair(path: Path, log: EventLog, version: int) -> None:
    """Give a log whose QEMU was killed a header and an end, so that QEMU replays it.

    Args:
        path: The log.
        log: What it says.
        version: The version that its QEMU writes.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("r+b") as stream:
        stream.truncate(log.size)
        stream.seek(log.size)
        stream.write(bytes([_END]))
        stream.seek(0)
        stream.write(_U32.pack(version))
