"""`vmdebug.toml`: guests by name, with all that `start` takes.

::

    default = "base"                 # the guest of `vmdebug start` without GUEST

    [guest.base]
    source = ".#base-nixos"          # GUEST, in any of its written forms
    memory = "2G"                    # the options of `vmdebug start`, without the leading dashes
    append = "loglevel=7"

    [guest.patched]
    source = "base"                  # the guest of another table, with changes
    kernel = "../linux"              # relative paths start at this file's directory

The nearest file is used, from the current directory upward.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vmdebug.errors import HostError, UsageError
from vmdebug.guest_options import (
    CHOICES,
    CONTAINER_FILES,
    CONTAINER_STORES,
    HOST,
    NO_MODULES,
    SEVERAL,
    UEFI,
    GuestOptions,
    StartOptions,
    memory_mib,
    several,
    split_share,
)
from vmdebug.paths import absolute, or_false
from vmdebug.spelling import nearest

FILE = "vmdebug.toml"

_TOP = ("default", "guest")
_KEYS = ("source", *(field.replace("_", "-") for field in StartOptions.__annotations__))
_PATHS = ("kernel", "vmlinux", "gdb-scripts", "disk", "initrd")
_SPECIAL = {"firmware": UEFI, "modules": NO_MODULES}
"""Keys that take a path or this word."""

_SUITE = re.compile(r"[a-z]+:[A-Za-z0-9._-]+")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Config:
    """The contents of one vmdebug.toml.

    Args:
        path: The file.
        default: The default GUEST; None if the file has none.
        guests: By NAME, in the file's order.
    """

    path: Path
    default: str | None
    guests: Mapping[str, GuestOptions]


def find(cwd: Path | None = None) -> Path | None:
    """Return the nearest vmdebug.toml, from `cwd` (None: the current directory) upward."""
    here = (cwd or Path.cwd()).absolute()
    return next((file for up in (here, *here.parents) if (file := up / FILE).is_file()), None)


def names(cwd: Path | None = None) -> tuple[str, ...]:
    """Return the names of the nearest vmdebug.toml's guests.

    Raises:
        UsageError: the file is invalid.
        HostError: the file cannot be read.
    """
    file = find(cwd)
    return () if file is None else tuple(read(file).guests)


def lookup(words: str | None = None, cwd: Path | None = None) -> GuestOptions:
    """Return the options of a guest.

    Args:
        words: GUEST; None for the nearest vmdebug.toml's default, else `builtin`. A name in that file wins
            over a file of the same name in the current directory; `./NAME` is the latter.
        cwd: Where relative paths start; None for the current directory.

    Raises:
        UsageError: vmdebug.toml is invalid.
        HostError: vmdebug.toml cannot be read.
    """
    if words is not None and not _NAME.fullmatch(words):
        return GuestOptions(source=words if cwd is None else absolute_guest(words, cwd))
    file = find(cwd)
    config = Config(Path(FILE), None, {}) if file is None else read(file)
    if words is None:
        return _default(config)
    if words in config.guests:
        return config.guests[words]
    return GuestOptions(source=words if cwd is None else absolute_guest(words, cwd))


def absolute_guest(words: str, directory: Path) -> str:
    """Return GUEST with its path, if it has one, made absolute.

    Args:
        words: GUEST.
        directory: Where relative paths start.
    """
    if words == "builtin":
        return words
    reference, hash_sign, attribute = words.partition("#")
    if not hash_sign or or_false((directory / words).exists):
        return str(absolute(words, directory))
    # Nix takes these for paths, everything else for the registry or a URL: nix3-flake(1), "Path-like syntax".
    if not reference or reference.startswith((".", "/", "~")):
        path, question, query = reference.partition("?")
        reference = f"{absolute(path, directory)}{question}{query}"
    return f"{reference}#{attribute}"


def absolute_root(words: str, directory: Path) -> str:
    """Return the option `root` with its path, if it is one, made absolute.

    Args:
        words: The option.
        directory: Where relative paths start.
    """
    transport, colon, rest = words.partition(":")
    if colon and transport in CONTAINER_FILES:
        path, tag_colon, tag = rest.partition(":")
        return f"{transport}:{absolute(path, directory)}{tag_colon}{tag}"
    if words == HOST or (colon and transport in CONTAINER_STORES) or _SUITE.fullmatch(words):
        return words
    return str(absolute(words, directory))


def absolute_share(words: str, directory: Path) -> str:
    """Return a word of the option `share` with its directory made absolute.

    Args:
        words: The word: `DIR[:GUESTDIR][:ro|rw|overlay]`.
        directory: Where relative paths start.
    """
    path, *rest = split_share(words)
    return ":".join((str(absolute(path, directory)), *filter(None, rest)))


def read(path: Path) -> Config:
    """Return the contents of a vmdebug.toml, checked.

    Raises:
        UsageError: it is not TOML, or has an invalid key or value.
        HostError: it cannot be read.
    """
    top = _toml(path)
    _known(top, _TOP, f"{path}: ", tables=True)
    default, tables = top.get("default"), top.get("guest", {})
    if default is not None and not isinstance(default, str):
        raise UsageError(f"{path}: default: expected a guest's name, got {default!r}")
    if not isinstance(tables, dict):
        raise UsageError(f"{path}: guest: expected tables, got {tables!r}", hint="write [guest.NAME]")
    for name, table in tables.items():
        _check_table(path, name, table)
    guests = {name: _options(path, name, _merged(path, name, tables)) for name in tables}
    config = Config(path, default, guests)
    _default(config)
    return config


def _toml(path: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 - most calls find no file

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HostError(
            f"{path} cannot be read: {error.strerror}", hint="make it readable, or move it"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not TOML: {error}", hint="correct that line; see https://toml.io"
        ) from error


def _check_table(path: Path, name: str, table: object) -> None:
    where = f"{path}: [guest.{name}] "
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}is not a valid name", hint="use letters, digits and . _ + -")
    if not isinstance(table, dict):
        raise UsageError(
            f"{path}: guest.{name}: expected a table, got {table!r}", hint=f"write [guest.{name}]"
        )
    _known(table, _KEYS, where)


def _known(table: Mapping[str, Any], keys: Iterable[str], where: str, *, tables: bool = False) -> None:
    for key, value in table.items():
        if key in keys:
            continue
        near = nearest(key, keys)
        if near:
            hint = f"did you mean {near!r}?"
        elif tables and isinstance(value, dict):
            hint = f"did you mean [guest.{key}]?"
        else:
            hint = f"the keys are: {', '.join(keys)}"
        raise UsageError(f"{where}unknown key {key!r}", hint=hint)


def _merged(
    path: Path, name: str, tables: Mapping[str, dict[str, Any]], seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a table merged over the one that its source names, recursively."""
    table = tables[name]
    source = table.get("source")
    if source == name or not isinstance(source, str) or source not in tables:
        return table
    if source in seen:
        circle = " → ".join((*seen, name, source))
        raise UsageError(f"{path}: [guest.{name}] source: the tables refer to each other: {circle}")
    below = _merged(path, source, tables, (*seen, name))
    own = {key: value for key, value in table.items() if key != "source"}
    # Two guests of one file must not have the same name.
    return {key: value for key, value in below.items() if key != "name"} | own


def _options(path: Path, name: str, table: Mapping[str, Any]) -> GuestOptions:
    fields = {key.replace("-", "_"): _value(path, name, key, value) for key, value in table.items()}
    try:
        return msgspec.convert({**fields, "table": name, "from_table": tuple(fields)}, GuestOptions)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        key = place.rstrip("`").replace("_", "-")
        choices = CHOICES.get(key.replace("-", "_"))
        hint = f"one of: {', '.join(choices)}" if choices else "see `vmdebug start --help`"
        raise UsageError(f"{path}: [guest.{name}] {key}: {_plain(what)}", hint=hint) from error


def _value(path: Path, name: str, key: str, value: Any) -> Any:
    """Return a value as `GuestOptions` has it; `GuestOptions` checks its type."""
    if key == "tcp" and isinstance(value, bool):
        return 0 if value else None
    if key == "record" and isinstance(value, bool):
        return "" if value else None
    if key in SEVERAL:
        here = path.parent
        words = several(key, value)
        return tuple(_in_words(key, each, here) if isinstance(each, str) else each for each in words)
    if not isinstance(value, str):
        return value
    if key == "memory":
        try:
            return memory_mib(value)
        except UsageError as error:
            raise UsageError(f"{path}: [guest.{name}] memory: {error.message}", hint=error.hint) from error
    return _in_words(key, value, path.parent)


def _in_words(key: str, words: str, directory: Path) -> str:
    """Return the words of an option with absolute paths.

    Args:
        key: The option.
        words: Its value, or one of its values.
        directory: Where relative paths start.
    """
    if key in (*_PATHS, "module") or (key in _SPECIAL and words != _SPECIAL[key]):
        return str(absolute(words, directory))
    match key:
        case "source":
            return absolute_guest(words, directory)
        case "root":
            return absolute_root(words, directory)
        case "share":
            return absolute_share(words, directory)
        case "record":
            return words and str(absolute(words, directory))
        case _:
            return words


def _plain(what: str) -> str:
    return (
        what.replace(" | null", "")
        .replace("Expected", "expected")
        .replace("`array`", "a list")
        .replace("`", "")
    )


def _default(config: Config) -> GuestOptions:
    words = config.default
    if words is None:
        return GuestOptions() if "builtin" not in config.guests else config.guests["builtin"]
    if words in config.guests:
        return config.guests[words]
    if _NAME.fullmatch(words) and words != "builtin" and not or_false((config.path.parent / words).exists):
        near = nearest(words, config.guests)
        hint = f"did you mean {near!r}?" if near else f"its guests: {', '.join(config.guests) or 'none'}"
        raise UsageError(f"{config.path}: default: no [guest.{words}] in it", hint=hint)
    return GuestOptions(source=absolute_guest(words, config.path.parent))
