"""What was once read out of a file, so that it need not be read again while the file stays as it is.

One small JSON a file, in the user's cache. A cache that is broken, gone or not
ours to write only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

_FORMAT = 1
"""Raised when what is read out of an unchanged file must be read anew."""

T = TypeVar("T", bound=msgspec.Struct)


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    """When a file is the same one. Its ctime tells apart what `cp -p` and `touch -r` make look alike."""

    format: int
    what: str
    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    key: _Key
    value: msgspec.Raw


def cached(path: Path, what: str, kind: type[T], read: Callable[[], T]) -> T:
    """Return what `read` returns, without calling it where it has been called for the same file before.

    Args:
        path: The file that `read` reads.
        what: What is read out of it.
        kind: The struct that `read` returns.
        read: Called when the file is new or has changed; what it raises is not kept.

    Raises:
        OSError: the file is not there.
    """
    key = _key(path, what)
    name = hashlib.sha256(f"{what} ".encode() + os.fsencode(key.path)).hexdigest()[:32]
    entry = directory() / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
        found = msgspec.json.decode(entry.read_bytes(), type=_Entry)
        if found.key == key:
            return msgspec.json.decode(found.value, type=kind)
    value = read()
    # A file that changed while it was read must not be taken for the one looked at before.
    if _key(path, what) == key:
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
            _write(entry, msgspec.json.encode(_Entry(key=key, value=msgspec.Raw(msgspec.json.encode(value)))))
    return value


def directory() -> Path:
    """Return where the entries are; it need not exist."""
    import platformdirs  # noqa: PLC0415 - slow to import, and `--help` gets here too

    return Path(platformdirs.user_cache_dir("vmdebug")) / "identity"


def _key(path: Path, what: str) -> _Key:
    real = path.resolve()
    seen = real.stat()
    return _Key(
        format=_FORMAT,
        what=what,
        path=str(real),
        size=seen.st_size,
        mtime_ns=seen.st_mtime_ns,
        ctime_ns=seen.st_ctime_ns,
    )


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
