"""Reads and writes messages of the Debug Adapter Protocol: a Content-Length header, then JSON."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from vmdebug.errors import HostError, UsageError

Message = dict[str, Any]

MOST_BYTES = 64 << 20
"""A longer message is a mistake of the client."""

_LONGEST_HEADER = 4096


class MessageReader:
    """Reads messages from a stream.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self) -> Message | None:
        """Return the next message; None at the end of the stream, also in the middle of a message.

        Raises:
            UsageError: what arrived is no message of the protocol.
        """
        length = self._header()
        if length is None:
            return None
        body = self._stream.read(length)
        if len(body) < length:
            return None
        try:
            return msgspec.json.decode(body, type=Message)
        except msgspec.MsgspecError as error:
            raise _no_message(body[:60]) from error

    def _header(self) -> int | None:
        length = None
        while True:
            try:
                line = self._stream.readline(_LONGEST_HEADER)
            except OSError:  # a connection that was reset
                return None
            if not line.endswith(b"\n"):
                if len(line) < _LONGEST_HEADER:
                    return None
                raise _no_message(line[:60])
            if not line.strip():
                if length is None:
                    raise _no_message(line)
                return length
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = _length(value)
            elif not value:
                raise _no_message(line[:60])


def _length(value: bytes) -> int:
    digits = value.strip()
    if not digits.isdigit() or int(digits) > MOST_BYTES:
        raise _no_message(b"Content-Length:" + value[:40])
    return int(digits)


def _no_message(found: bytes) -> UsageError:
    return UsageError(
        "expected a message of the Debug Adapter Protocol (`Content-Length: N`, an empty line, JSON),"
        f" found {found.decode(errors='replace')!r}",
        hint="an editor starts `vmdebug dap`; configure yours: vmdebug editor vscode",
    )


class Log:
    """A file to which all messages are written, one a line: `--log`.

    Args:
        path: The file; None: write nothing.

    Raises:
        HostError: it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._stream: IO[bytes] | None = None
        if path is not None:
            try:
                self._stream = path.open("wb", buffering=0)
            except OSError as error:
                raise HostError(
                    f"cannot write the log {path}: {error.strerror}", hint="give --log another file"
                ) from error

    def write(self, way: str, message: Mapping[str, Any]) -> None:
        """Write a message.

        Args:
            way: Who sent it to whom: "client", "adapter", "to GDB", "GDB".
            message: The message.
        """
        if self._stream is None:
            return
        seconds = round(time.monotonic() - self._started, 3)
        line = msgspec.json.encode({"seconds": seconds, "from": way, "message": message})
        with self._lock, contextlib.suppress(OSError):  # a full disk ends no session
            self._stream.write(line + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


class MessageWriter:
    """Writes messages to a stream, from several threads.

    Args:
        stream: The stream.
        log: Gets each message.
        way: The messages' sender, for the log.
    """

    def __init__(self, stream: IO[bytes], log: Log, way: str) -> None:
        self._stream = stream
        self._log = log
        self._way = way
        self._lock = threading.Lock()
        self._count = 0

    def write(self, message: Mapping[str, Any]) -> int:
        """Write a message, and return the `seq` that it got. A reader that has gone away gets nothing."""
        with self._lock:
            self._count += 1
            numbered = {"seq": self._count, **message}
            body = msgspec.json.encode(numbered)
            self._log.write(self._way, numbered)
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
                self._stream.flush()
            return self._count
