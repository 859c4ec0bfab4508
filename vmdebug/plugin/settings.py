"""The settings of a test run and the marker of a test, as frozen values: options, ini file, marker."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import pytest

from vmdebug import config as toml
from vmdebug.channel.log.trouble import KINDS
from vmdebug.deadline import BOOT_SECONDS
from vmdebug.errors import UsageError
from vmdebug.guest_options import HOST, NO_MODULES, Accel, GuestOptions, changed, memory_mib
from vmdebug.network import LARGEST_SEGMENT, NONE
from vmdebug.paths import absolute, or_false
from vmdebug.spelling import nearest

DIED = "died"
"""A kind in addition to those of kernel trouble: QEMU was killed."""

ALLOWED = (*KINDS, DIED)
"""The kinds that a marker's `allow` accepts."""

TIMEOUT_SECONDS = 300.0
"""How long each of a test's setup, call and teardown may take, by default."""


SEGMENT = "segment=test"
"""The segment of the fixture `sessions`; each test has its own."""


class Named(msgspec.Struct, frozen=True):
    """The name of a guest or a kernel, and the directory where relative paths in it start."""

    words: str
    where: Path


ON_FAILURE = "on-failure"
"""The word of `--vmdebug-record`."""


class Target(msgspec.Struct, frozen=True):
    """What a test runs on: one combination of a guest and a kernel.

    Args:
        guest: GUEST; None for the default of vmdebug.toml, or else `builtin`.
        kernel: Its kernel; None for the guest's own.
    """

    guest: Named | None = None
    kernel: Named | None = None


class CoverageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What `--vmdebug-cov` and its options say.

    Args:
        paths: Files and directories of the kernel's tree, and modules; () for what the tests executed.
        file: The data file.
        outputs: The reports: their formats, and where they are written; "" for the default.
        diff: The revision since which changed lines must have been reached; "" for no such report.
        source: The directory of the kernel's source; None: where its debugging information says.
    """

    paths: tuple[str, ...]
    file: Path
    outputs: tuple[tuple[str, str], ...]
    diff: str = ""
    source: Path | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a test run.

    Args:
        guests: The guests that tests run on.
        kernels: The kernels that each guest boots in turn; empty for the guests' own.
        root: The root directory of the tests, where the search for vmdebug.toml starts if no guest is given.
        accel: The accelerator; None leaves it to the guest.
        artifacts: Directory for the reports of failures as files, or None.
        keep: Whether to leave a failed test's VM running.
        dump: Whether to write a vmcore of a failed test's guest.
        record: Whether to record each test's guest, and keep the recording if the test fails.
        timeout: Seconds for each phase of a test; 0 for no limit.
        boot_timeout: Seconds in which a guest's shell must answer.
        coverage: Whether to record the coverage of the kernel, and how.
    """

    guests: tuple[Named, ...]
    kernels: tuple[Named, ...]
    root: Path
    accel: Accel | None = None
    artifacts: Path | None = None
    keep: bool = False
    dump: bool = False
    record: bool = False
    timeout: float = TIMEOUT_SECONDS
    boot_timeout: float = BOOT_SECONDS
    coverage: CoverageSettings | None = None


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


def read(config: pytest.Config) -> Settings:
    """Return the settings of the command line and the ini file.

    Raises:
        pytest.UsageError: an option is invalid.
    """
    here = config.invocation_params.dir
    ini = config.inipath.parent if config.inipath is not None else config.rootpath
    accel = config.getoption("vmdebug_accel") or config.getini("vmdebug_accel") or None
    if accel not in (None, *get_args(Accel)):
        raise pytest.UsageError(f"vmdebug_accel: {accel!r} is not one of {', '.join(get_args(Accel))}")
    artifacts = _path(config.getoption("vmdebug_artifacts"), here) or _path(
        config.getini("vmdebug_artifacts"), ini
    )
    dump = bool(config.getoption("vmdebug_dump") or config.getini("vmdebug_dump"))
    if dump and artifacts is None:
        raise pytest.UsageError("--vmdebug-dump needs a directory for the vmcores: --vmdebug-artifacts DIR")
    return Settings(
        guests=_named(config, "vmdebug_guest", here, ini),
        kernels=_named(config, "vmdebug_kernel", here, ini),
        root=config.rootpath,
        accel=accel,
        artifacts=artifacts,
        keep=bool(config.getoption("vmdebug_keep") or config.getini("vmdebug_keep")),
        dump=dump,
        record=_record(config),
        timeout=_seconds(config, "vmdebug_timeout", TIMEOUT_SECONDS),
        boot_timeout=_seconds(config, "vmdebug_boot_timeout", BOOT_SECONDS),
        coverage=coverage(config),
    )


REPORTS = ("term", "html", "lcov", "xml", "json")
"""The formats of coverage reports."""


def coverage(config: pytest.Config) -> CoverageSettings | None:
    """Return the settings of coverage; None without `--vmdebug-cov`.

    Raises:
        pytest.UsageError: an option is invalid.
    """
    given, diff = config.getoption("vmdebug_cov"), config.getoption("vmdebug_cov_diff") or ""
    named = config.getoption("vmdebug_cov_report") or ()
    if given is None:
        for option, value in (("--vmdebug-cov-diff", diff), ("--vmdebug-cov-report", named)):
            if value:
                raise pytest.UsageError(f"{option} needs --vmdebug-cov")
        return None
    outputs = []
    for words in named or ("term",):
        form, _, where = words.partition(":")
        if form not in REPORTS:
            raise pytest.UsageError(
                f"--vmdebug-cov-report: {words!r} is none of {', '.join(REPORTS)}, or FORMAT:PATH"
            )
        outputs.append((form, str(absolute(where, config.invocation_params.dir)) if where else ""))
    source = config.getoption("vmdebug_cov_source")
    return CoverageSettings(
        paths=tuple(each for each in given if each),
        file=absolute(
            config.getoption("vmdebug_cov_file") or "kernel.coverage", config.invocation_params.dir
        ),
        outputs=tuple(outputs),
        diff=diff,
        source=absolute(source, config.invocation_params.dir) if source else None,
    )


def _record(config: pytest.Config) -> bool:
    words = config.getoption("vmdebug_record") or config.getini("vmdebug_record") or None
    if words not in (None, ON_FAILURE):
        raise pytest.UsageError(f"vmdebug_record: {words!r} is not {ON_FAILURE}")
    return words is not None


def marker(marks: Iterable[pytest.Mark]) -> Marker:
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
    _memory(found)
    return found


def targets(settings: Settings, test: MarkedTest) -> dict[str, Target]:
    """Return the targets of a test, each by the id in the test's name; "" if there is only one.

    Args:
        settings: The settings of the run.
        test: The test; its marker overrides the settings.
    """
    here = test.path.parent
    guests = _several(test.marker.guest, here) or settings.guests or (None,)
    kernels = _several(test.marker.kernel, here) or settings.kernels or (None,)
    guest_ids, kernel_ids = _ids(guests), _ids(kernels)
    found = {}
    for (guest, first), (kernel, second) in itertools.product(
        zip(guests, guest_ids, strict=True), zip(kernels, kernel_ids, strict=True)
    ):
        found["-".join(part for part in (first, second) if part)] = Target(guest, kernel)
    return found


def options(
    settings: Settings,
    marker: Marker,
    target: Target,
    *,
    halted: bool,
    together: bool = False,
    where: Path | None = None,
) -> GuestOptions:
    """Return the options of a test's guest.

    Args:
        settings: The settings of the run.
        marker: The marker of the test.
        target: The guest and its kernel.
        halted: Whether the guest stops at the reset vector.
        together: Whether the test has several guests, which are on one segment.
        where: Where the marker's relative paths start; None for the current directory.

    Raises:
        UsageError: vmdebug.toml, GUEST or an option is invalid.
        HostError: vmdebug.toml cannot be read.
    """
    if target.guest is None:
        base = toml.lookup(None, settings.root)
    else:
        base = toml.lookup(target.guest.words, target.guest.where)
    changes: dict[str, Any] = {"halt": halted, "tcp": None}
    if target.kernel is not None:
        changes["kernel"] = str(absolute(target.kernel.words, target.kernel.where))
    if settings.coverage is not None:
        changes["trace_ready"] = "yes"
    if marker.append:
        changes["append"] = f"{base.append} {marker.append}".strip()
    here = where or Path.cwd()
    record = settings.record if marker.record is None else marker.record
    overrides = {
        "record": "" if record else None,
        "accel": settings.accel,
        "initrd": None if marker.initrd is None else str(absolute(marker.initrd, here)),
        "modules": _modules(marker, here),
        "module": _module_files(marker, here),
        "load_modules": marker.load_modules,
        "root": None if marker.root is None else toml.absolute_root(marker.root, here),
        "share": _shares(marker, here),
        "net": marker.net,
        "forward": marker.forward,
        "kaslr": marker.kaslr,
        "memory": _memory(marker),
        "cpus": marker.cpus,
    }
    changes |= {key: value for key, value in overrides.items() if value is not None}
    wanted = changed(base, changes)
    if together and not any(each.startswith("segment=") for each in wanted.net):
        networks = ("user",) if wanted.forward and not wanted.net else wanted.net
        wanted = changed(wanted, {"net": (*(each for each in networks if each != NONE), SEGMENT)})
    if wanted.root_image == "auto" and _is_directory(wanted.root):
        # A guest cannot be cloned if it has a directory of this machine.
        return changed(wanted, {"root_image": "always"})
    return wanted


def _is_directory(root: str | None) -> bool:
    """Return whether the option `root` is a directory, and not the word for this machine's own root."""
    return root is not None and root != HOST and or_false(absolute(root).is_dir)


def _shares(marker: Marker, here: Path) -> tuple[str, ...] | None:
    words = (marker.share,) if isinstance(marker.share, str) else marker.share
    return tuple(toml.absolute_share(each, here) for each in words) or None


def _named(config: pytest.Config, name: str, here: Path, ini: Path) -> tuple[Named, ...]:
    given = config.getoption(name)
    names, where = (given, here) if given else (config.getini(name), ini)
    return tuple(Named(each, where) for each in dict.fromkeys(names))


def _several(names: str | Sequence[str] | None, where: Path) -> tuple[Named, ...]:
    if names is None:
        return ()
    return tuple(Named(each, where) for each in ((names,) if isinstance(names, str) else names))


def _ids(several: Sequence[Named | None]) -> list[str]:
    """Return a short, unique id for each; "" if there is only one.

    For paths it is the part in which they differ: `linux-a` of `/src/linux-a/vmlinuz`.
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


def _modules(marker: Marker, where: Path) -> str | None:
    special = marker.modules in (None, NO_MODULES)
    return marker.modules if special else str(absolute(str(marker.modules), where))


def _module_files(marker: Marker, where: Path) -> tuple[str, ...] | None:
    named = (marker.module,) if isinstance(marker.module, str) else marker.module
    return tuple(str(absolute(each, where)) for each in named) or None


def _memory(marker: Marker) -> int | None:
    return None if marker.memory is None else memory_mib(str(marker.memory))


def _path(path: str | None, where: Path) -> Path | None:
    return absolute(path, where) if path else None


def _seconds(config: pytest.Config, name: str, default: float) -> float:
    given = config.getoption(name, default=None) or config.getini(name)
    if given in (None, ""):
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # also true for nan
        raise pytest.UsageError(f"{name}: {given!r} is not a number of seconds")
    return seconds
