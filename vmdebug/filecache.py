"""A cache of facts read from files, valid while a file does not change.

Each file has a small JSON entry in the user's cache. A cache that is damaged, missing or not writable only
costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from vmdebug.paths import of_user, write_atomically

_FORMAT = 1
"""Increase it when unchanged files must be read again."""

T = TypeVar("T", bound=msgspec.Struct)


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    """Identifies a file's contents. The ctime changes even where `cp -p` and `touch -r` keep the mtime."""

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
    """Return what `read` returns, from the cache if `read` has been called for the same file before.

    Args:
        path: The file that `read` reads.
        what: The kind of fact.
        kind: The struct that `read` returns.
        read: Called if the file is new or has changed; exceptions are not cached.

    Raises:
        OSError: the file does not exist.
    """
    key = _key(path, what)
    name = hashlib.sha256(f"{what} ".encode() + os.fsencode(key.path)).hexdigest()[:32]
    entry = directory() / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
        found = msgspec.json.decode(entry.read_bytes(), type=_Entry)
        if found.key == key:
            return msgspec.json.decode(found.value, type=kind)
    value = read()
    # Do not cache what was read from a file that changed meanwhile.
    if _key(path, what) == key:
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
            write_atomically(
                entry, msgspec.json.encode(_Entry(key=key, value=msgspec.Raw(msgspec.json.encode(value))))
            )
    return value


def directory() -> Path:
    """Return the directory of the entries; it need not exist."""
    import platformdirs  # noqa: PLC0415 - slow to import, and `--help` gets here too

    return of_user(platformdirs.user_cache_dir, "XDG_CACHE_HOME") / "identity"


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
