"""The marker of a test: the keywords of `@pytest.mark.vmdebug(…)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from vmdebug.channel.log.trouble import KINDS
from vmdebug.errors import UsageError
from vmdebug.guest_options import memory_mib
from vmdebug.network import LARGEST_SEGMENT
from vmdebug.spelling import nearest

DIED = "died"
"""A kind in addition to those of kernel trouble: QEMU was killed."""

ALLOWED = (*KINDS, DIED)
"""The kinds that a marker's `allow` accepts."""


class Marker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keywords of `@pytest.mark.vmdebug(…)`.

    Args:
        guest: GUEST, or several: the test runs on each. Paths start at the test file.
        kernel: Boot image or build tree, or several. Paths start at the test file.
        halt: Whether to stop at the reset vector; None leaves it to the fixtures.
        append: Kernel parameters to add.
        kaslr: Whether to leave address randomisation on.
        memory: Guest RAM, as `--memory` takes it, or in MiB.
        cpus: Number of CPUs.
        initrd: The initramfs to boot instead of vmdebug's. Paths start at the test file.
        modules: The kernel's modules, as `start --modules` takes them.
        module: A module file, or several, to add to the guest's modules and to load.
        load_modules: Whether the guest loads them.
        root: The root file system, as `--root` takes it. Paths start at the test file.
        share: Directories that the guest gets, as `--share` takes them. Paths start at the test file.
        net: The networks, as `--net` takes them.
        forward: Ports of the host, as `--forward` takes them.
        sessions: The number of guests of the fixture `sessions`.
        record: Whether to record the guest, and keep the recording if the test fails; None leaves it to the
            run.
        allow: Kinds of trouble that do not fail the test.
        kmemleak: Whether to have kmemleak scan the kernel's memory at the test's end.
        timeout: Seconds for each phase of the test; 0 for no limit.
    """

    guest: str | tuple[str, ...] | None = None
    kernel: str | tuple[str, ...] | None = None
    halt: bool | None = None
    append: str = ""
    kaslr: bool | None = None
    memory: str | int | None = None
    cpus: int | None = None
    initrd: str | None = None
    modules: str | None = None
    module: str | tuple[str, ...] = ()
    load_modules: bool | None = None
    root: str | None = None
    share: str | tuple[str, ...] = ()
    net: str | tuple[str, ...] | None = None
    forward: int | str | tuple[int | str, ...] | None = None
    sessions: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SEGMENT)] = 2
    record: bool | None = None
    allow: tuple[str, ...] = ()
    kmemleak: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class MarkedTest:
    """One test: its file, and its marker."""

    path: Path
    marker: Marker


def read(marks: Iterable[pytest.Mark]) -> Marker:
    """Return the keywords of a test's markers; the closest marker overrides the others.

    Raises:
        UsageError: a marker is invalid.
    """
    keywords: dict[str, Any] = {}
    for mark in marks:
        _check(mark)
        keywords = {**mark.kwargs, **keywords}
    try:
        found = msgspec.convert(_tuples(keywords), Marker)
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
        raise UsageError(f"@pytest.mark.vmdebug(timeout={found.timeout:g}): not a number of seconds")
    memory(found)
    return found


def _check(mark: pytest.Mark) -> None:
    if mark.args:
        raise UsageError(
            f"@pytest.mark.vmdebug takes keywords only, got {mark.args[0]!r}",
            hint=f"write it as one of its keywords: {_keywords()}",
        )
    for key in mark.kwargs:
        if key not in Marker.__struct_fields__:
            raise UsageError(
                f"@pytest.mark.vmdebug has no keyword {key!r}", hint=_near(key, Marker.__struct_fields__)
            )


def _keywords() -> str:
    return ", ".join(Marker.__struct_fields__)


def _near(word: str, valid: Sequence[str]) -> str:
    near = nearest(word, valid)
    return f"did you mean {near!r}?" if near else f"there are: {', '.join(valid)}"


def _tuples(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords with tuples instead of lists; a single kind in `allow` becomes a tuple, too."""
    plain = {
        key: tuple(value) if isinstance(value, (list, set)) else value for key, value in keywords.items()
    }
    if isinstance(plain.get("allow"), str):
        plain["allow"] = (plain["allow"],)
    return plain


def memory(marker: Marker) -> int | None:
    """Return the guest's memory in MiB; None leaves it to the guest.

    Raises:
        UsageError: the keyword is wrong.
    """
    return None if marker.memory is None else memory_mib(str(marker.memory))
