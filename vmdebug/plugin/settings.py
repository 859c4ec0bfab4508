"""What a test run and a test say about their guests, as frozen values: options, ini, marker."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from vmdebug import config as toml
from vmdebug.channel.serial.trouble import KINDS
from vmdebug.errors import UsageError
from vmdebug.guest import Accel, GuestOptions, changed, memory_mib
from vmdebug.paths import absolute

DIED = "died"
"""Beside the kinds of kernel trouble: somebody killed QEMU."""

ALLOWED = (*KINDS, DIED)
"""What a marker's `allow` can have."""

TIMEOUT_SECONDS = 300.0
"""How long each of a test's setup, call and teardown may take, where nobody says."""

BOOT_SECONDS = 180.0
"""How long a guest may take to its shell, where nobody says."""


class Said(msgspec.Struct, frozen=True):
    """Words that name a guest or a kernel, and the directory where they were said."""

    words: str
    where: Path


class Target(msgspec.Struct, frozen=True):
    """One cell of the matrix of guests and kernels.

    Args:
        guest: GUEST; None is vmdebug.toml's default, else `builtin`.
        kernel: Its kernel; None is its own.
    """

    guest: Said | None = None
    kernel: Said | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the run says.

    Args:
        guests: The guests that tests run on.
        kernels: The kernels that they run on, each on each guest; none: the guests' own.
        root: The root directory of the tests: where vmdebug.toml is looked for when no guest is named.
        accel: Which accelerator; None leaves it to the guest.
        artifacts: Where reports of failures go as files, or None.
        keep: Whether a failing test's VM is left running.
        dump: Whether a failing test's report has a vmcore.
        timeout: Seconds for each phase of a test; 0 is for ever.
        boot_timeout: Seconds until a guest's shell has to answer.
    """

    guests: tuple[Said, ...]
    kernels: tuple[Said, ...]
    root: Path
    accel: Accel | None = None
    artifacts: Path | None = None
    keep: bool = False
    dump: bool = False
    timeout: float = TIMEOUT_SECONDS
    boot_timeout: float = BOOT_SECONDS


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `@pytest.mark.vmdebug(…)` says of one test.

    Args:
        guest: GUEST, or several, each of which the test runs on; relative to the test file.
        kernel: Boot image or build tree, or several; relative to the test file.
        halt: Stop at the reset vector; None leaves it to the fixtures.
        append: Kernel parameters to add.
        kaslr: Leave address randomisation on.
        memory: Guest RAM, as `--memory` takes it, or in MiB.
        cpus: Number of CPUs.
        allow: Kinds of trouble on the console that do not fail the test.
        timeout: Seconds for each phase of the test; 0 is for ever.
    """

    guest: str | tuple[str, ...] | None = None
    kernel: str | tuple[str, ...] | None = None
    halt: bool | None = None
    append: str = ""
    kaslr: bool | None = None
    memory: str | int | None = None
    cpus: int | None = None
    allow: tuple[str, ...] = ()
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One test: where it is, and its wish."""

    path: Path
    wish: Wish


def read(config: pytest.Config) -> Settings:
    """Return what the command line and the ini file say.

    Raises:
        pytest.UsageError: one of it cannot be right.
    """
    here = config.invocation_params.dir
    ini = config.inipath.parent if config.inipath is not None else config.rootpath
    accel = config.getoption("vmdebug_accel") or config.getini("vmdebug_accel") or None
    if accel not in (None, *get_args(Accel)):
        raise pytest.UsageError(f"vmdebug_accel: {accel!r} is none of {', '.join(get_args(Accel))}")
    artifacts = _path(config.getoption("vmdebug_artifacts"), here) or _path(
        config.getini("vmdebug_artifacts"), ini
    )
    dump = bool(config.getoption("vmdebug_dump") or config.getini("vmdebug_dump"))
    if dump and artifacts is None:
        raise pytest.UsageError("--vmdebug-dump needs a place for the vmcores: --vmdebug-artifacts DIR")
    return Settings(
        guests=_said(config, "vmdebug_guest", here, ini),
        kernels=_said(config, "vmdebug_kernel", here, ini),
        root=config.rootpath,
        accel=accel,
        artifacts=artifacts,
        keep=bool(config.getoption("vmdebug_keep") or config.getini("vmdebug_keep")),
        dump=dump,
        timeout=_seconds(config, "vmdebug_timeout", TIMEOUT_SECONDS),
        boot_timeout=_seconds(config, "vmdebug_boot_timeout", BOOT_SECONDS),
    )


def wish(marks: Iterable[pytest.Mark]) -> Wish:
    """Return what a test's markers say, the closest first.

    Raises:
        UsageError: one of them cannot be right.
    """
    said: dict[str, Any] = {}
    for mark in marks:
        _check(mark)
        said = {**mark.kwargs, **said}
    try:
        found = msgspec.convert(_tuples(said), Wish)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        raise UsageError(
            f"@pytest.mark.vmdebug({place.rstrip('`') or '…'}=…): {what.replace('`', '')}"
        ) from error
    for kind in found.allow:
        if kind not in ALLOWED:
            raise UsageError(
                f"@pytest.mark.vmdebug(allow=…): there is no kind of trouble {kind!r}",
                hint=_near(kind, ALLOWED),
            )
    if found.timeout is not None and not found.timeout >= 0:
        raise UsageError(f"@pytest.mark.vmdebug(timeout={found.timeout:g}): no number of seconds")
    _memory(found)
    return found


def targets(settings: Settings, asked: Asked) -> dict[str, Target]:
    """Return what a test runs on, by the id that its name has for it; "" where there is one only.

    Args:
        settings: The run's.
        asked: The test's, which goes before.
    """
    here = asked.path.parent
    guests = _several(asked.wish.guest, here) or settings.guests or (None,)
    kernels = _several(asked.wish.kernel, here) or settings.kernels or (None,)
    guest_ids, kernel_ids = _ids(guests), _ids(kernels)
    found = {}
    for (guest, first), (kernel, second) in itertools.product(
        zip(guests, guest_ids, strict=True), zip(kernels, kernel_ids, strict=True)
    ):
        found["-".join(part for part in (first, second) if part)] = Target(guest, kernel)
    return found


def options(settings: Settings, asked: Wish, target: Target, *, halted: bool) -> GuestOptions:
    """Return the guest that a test wants.

    Raises:
        UsageError: vmdebug.toml or GUEST cannot be right.
        HostError: vmdebug.toml may not be read.
    """
    if target.guest is None:
        base = toml.lookup(None, settings.root)
    else:
        base = toml.lookup(target.guest.words, target.guest.where)
    said: dict[str, Any] = {"halt": halted, "tcp": None}
    if target.kernel is not None:
        said["kernel"] = str(absolute(target.kernel.words, target.kernel.where))
    if asked.append:
        said["append"] = f"{base.append} {asked.append}".strip()
    overrides = {
        "accel": settings.accel,
        "kaslr": asked.kaslr,
        "memory": _memory(asked),
        "cpus": asked.cpus,
    }
    said |= {key: value for key, value in overrides.items() if value is not None}
    return changed(base, said)


def _said(config: pytest.Config, name: str, here: Path, ini: Path) -> tuple[Said, ...]:
    given = config.getoption(name)
    words, where = (given, here) if given else (config.getini(name), ini)
    return tuple(Said(each, where) for each in dict.fromkeys(words))


def _several(words: str | Sequence[str] | None, where: Path) -> tuple[Said, ...]:
    if words is None:
        return ()
    return tuple(Said(each, where) for each in ((words,) if isinstance(words, str) else words))


def _ids(several: Sequence[Said | None]) -> list[str]:
    """Return a short word for each that tells it from the others; nothing for one alone.

    Of paths that is the part in which they differ: `linux-a` of `/src/linux-a/vmlinuz`.
    """
    if len(several) == 1:
        return [""]
    parts = [tuple(part for part in each.words.split("/") if part) for each in several if each is not None]
    for depth in range(1, max(map(len, parts)) + 1):
        ids = [part[-min(depth, len(part))] for part in parts]
        if len(set(ids)) == len(ids):
            return ids
    return ["-".join(part) for part in parts]


def _check(mark: pytest.Mark) -> None:
    if mark.args:
        raise UsageError(
            f"@pytest.mark.vmdebug takes keywords only, got {mark.args[0]!r}",
            hint=f"say which: {_keywords()}",
        )
    for key in mark.kwargs:
        if key not in Wish.__struct_fields__:
            raise UsageError(
                f"@pytest.mark.vmdebug has no keyword {key!r}", hint=_near(key, Wish.__struct_fields__)
            )


def _keywords() -> str:
    return ", ".join(Wish.__struct_fields__)


def _near(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(words)}"


def _tuples(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords with each list as a tuple; a single `allow` is one of its kind."""
    plain = {key: tuple(value) if isinstance(value, (list, set)) else value for key, value in said.items()}
    if isinstance(plain.get("allow"), str):
        plain["allow"] = (plain["allow"],)
    return plain


def _memory(asked: Wish) -> int | None:
    return None if asked.memory is None else memory_mib(str(asked.memory))


def _path(words: str | None, where: Path) -> Path | None:
    return absolute(words, where) if words else None


def _seconds(config: pytest.Config, name: str, default: float) -> float:
    given = config.getoption(name, default=None) or config.getini(name)
    if given in (None, ""):
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # nor is nan
        raise pytest.UsageError(f"{name}: {given!r} is no number of seconds")
    return seconds
