"""Spells options in messages for their reader, and suggests corrections of mistyped words.

The same hint says `--kernel TREE` on the command line, `kernel="TREE"` to a Python caller and
`kernel = "TREE"` for vmdebug.toml; the code writes `option("kernel", "TREE")`. The default is Python's
spelling; `spelled` sets another one for a block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

Value = str | int | bool | None

Spelling = Callable[[str, Value], str]
"""Spells an option, a field of `GuestOptions`, with its value; None: the name alone."""


def python(name: str, value: Value = None) -> str:
    """Spell an option as a keyword argument: `kernel=`, `kernel="TREE"`, `force=True`."""
    return f"{name}=" if value is None else f"{name}={_quoted(value)}"


def command_line(name: str, value: Value = None) -> str:
    """Spell an option as `vmdebug start` takes it: `--kernel`, `--kernel TREE`, `--force`, `--no-kaslr`."""
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{word}" if value else f"--no-{word}"
    return f"--{word}" if value is None else f"--{word} {value}"


def toml(name: str, value: Value = None) -> str:
    """Spell an option as a key of vmdebug.toml: `kernel =`, `kernel = "TREE"`, `force = true`."""
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return f"{word} = {str(value).lower()}"
    return f"{word} =" if value is None else f"{word} = {_quoted(value)}"


_SPELLING: ContextVar[Spelling] = ContextVar("vmdebug_spelling", default=python)


def option(name: str, value: Value = None) -> str:
    """Return the spelling of an option for the present reader.

    Args:
        name: The field of `GuestOptions`: "gdb_scripts".
        value: Its value, or a placeholder for it: "FILE"; None names the option alone.
    """
    return _SPELLING.get()(name, value)


_REFERENCES: dict[Spelling, str] = {
    python: "help(vmdebug.GuestOptions) explains each option",
    command_line: "`vmdebug start --help` explains each option",
    toml: "vmdebug.toml(5) explains each key",
}


def reference() -> str:
    """Return a hint where the options are explained for the present reader; "" if unknown."""
    return _REFERENCES.get(_SPELLING.get(), "")


def current() -> Spelling:
    """Return the present spelling."""
    return _SPELLING.get()


@contextlib.contextmanager
def spelled(spelling: Spelling) -> Iterator[None]:
    """Set the spelling for the block."""
    token = _SPELLING.set(spelling)
    try:
        yield
    finally:
        _SPELLING.reset(token)


def nearest(word: str, among: Iterable[str]) -> str:
    """Return the word that is most similar to a mistyped one; "" if none is similar."""
    import difflib  # noqa: PLC0415 - most runs have no mistake

    return next(iter(difflib.get_close_matches(word, list(among), n=1)), "")


def _quoted(value: str | int | bool) -> str:
    import json  # noqa: PLC0415 - most runs print no error

    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
