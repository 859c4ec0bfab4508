"""The settings of a test run, as frozen values: options and ini file."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from vmdebug.deadline import BOOT_SECONDS
from vmdebug.guest_options import Accel
from vmdebug.paths import absolute

TIMEOUT_SECONDS = 300.0
"""How long each of a test's setup, call and teardown may take, by default."""


class Named(msgspec.Struct, frozen=True):
    """The name of a guest or a kernel, and the directory where relative paths in it start."""

    words: str
    where: Path


ON_FAILURE = "on-failure"
"""The word of `--vmdebug-record`."""


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
        for option in ("report", "diff", "file", "source"):
            if config.getoption(f"vmdebug_cov_{option}"):
                raise pytest.UsageError(f"--vmdebug-cov-{option} needs --vmdebug-cov")
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


def _named(config: pytest.Config, name: str, here: Path, ini: Path) -> tuple[Named, ...]:
    given = config.getoption(name)
    names, where = (given, here) if given else (config.getini(name), ini)
    return tuple(Named(each, where) for each in dict.fromkeys(names))


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
