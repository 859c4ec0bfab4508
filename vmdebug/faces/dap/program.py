"""Finds a GDB with a usable debug adapter: that of the extra `vmdebug[gdb]`, or the system's if it is new.

GDB 14 was the first whose adapter has what is needed here.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import msgspec

from vmdebug import extras, process
from vmdebug.deadline import Deadline
from vmdebug.debugger import startup
from vmdebug.errors import HostError, VmdebugError

OLDEST = 14
"""The oldest usable GDB."""

_PACKAGE = extras.GDB.module
"""The Python package of the extra: a relocatable GDB. Its console script would hide the system's GDB."""

_VERSION_SECONDS = 20.0


class Program(msgspec.Struct, frozen=True):
    """A GDB.

    Args:
        argv: The program, with options of its own.
        env: Its complete environment.
        version: Its version, in GDB's words: "18.1".
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    version: str


def find(words: str | None = None) -> Program:
    """Return the GDB to use.

    Args:
        words: The program of `--gdb` and its options, quoted as in a shell; None: the one of the extra if it
            is installed, otherwise `gdb` on PATH.

    Raises:
        HostError: there is no GDB, or it is too old, or the words are not quoted properly.
    """
    if words is not None:
        return _checked(_split(words), startup.environment(), "--gdb")
    found = packaged()
    if found is not None:
        return _checked(*found, "the package gdb-for-pwndbg")
    try:
        path = process.find("gdb", package="gdb")
    except HostError as error:
        raise HostError(error.message, hint=extras.GDB.install) from error
    return _checked((str(path),), startup.environment(), str(path))


def _split(words: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(words))
    except ValueError as error:
        raise HostError(f"--gdb {words}: {error}", hint="quote it as in a shell") from error


def packaged() -> tuple[tuple[str, ...], dict[str, str]] | None:
    """Return the command and the environment of the extra's GDB; None if it is not installed.

    The package's own start finds the shared library of this Python, in which GDB runs its scripts.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    directory = Path(next(iter(spec.submodule_search_locations))).parent
    environment = {**startup.environment(), "PYTHONPATH": str(directory)}
    # -P: modules in the present directory must not replace those of Python.
    return (sys.executable, "-P", "-m", f"{_PACKAGE}.gdb"), environment


def _checked(argv: tuple[str, ...], env: dict[str, str], origin: str) -> Program:
    if not argv:
        raise HostError("--gdb names no program", hint=f"leave it out; or {extras.GDB.install}")
    try:
        said = process.run((*argv, "--version"), env=env, deadline=Deadline.after(_VERSION_SECONDS)).stdout
    except VmdebugError as error:
        raise HostError(
            f"{origin} cannot be used: {error.message}", hint=extras.GDB.install, detail=error.detail
        ) from error
    first = said.partition("\n")[0]
    found = re.search(r"(\d+)\.\d+\S*$", first)
    if found is None or int(found[1]) < OLDEST:
        raise HostError(
            f"`vmdebug dap` needs GDB {OLDEST} or newer, and {origin} is {first or 'no GDB'}",
            hint=extras.GDB.install,
        )
    return Program(argv, env, found[0])
