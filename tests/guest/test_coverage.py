"""Coverage of real kernels: the lines that a command executes, modules, two CPUs with KASLR, and pytest's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import sources, vm
from vmdebug.cli import status_of
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError
from vmdebug.guest import LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.session import DebugSession
from vmdebug.trace.coverage import library

pytest_plugins = ["pytester"]

SHOW = {11, 12, 16}
"""The lines of `version_proc_show` that have code."""


@pytest.fixture(autouse=True)
def _private_runtime(runtime: Path) -> None:
    """Run the VMs of each test in a private runtime directory."""


@pytest.fixture(scope="module")
def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def launched(**options: object) -> LaunchSpec:
    wanted = GuestOptions(source="builtin", accel="tcg", **options)  # type: ignore[arg-type]
    return sources.resolve(wanted, report=silent, deadline=Deadline.after(60))


def test_a_command_executes_its_lines_and_not_those_beside(tmp_path: Path) -> None:
    spec = launched(trace_ready="yes", cpus=2, kaslr=True)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as session:
        session.exec("true", timeout=SECONDS)
        with session.coverage(timeout=SECONDS) as first:
            session.exec("cat /proc/version", timeout=SECONDS, check=True)
        assert first.lines("fs/proc/version.c") == SHOW
        assert first.lines("fs/proc/uptime.c") == set()

        session.snapshot("before", timeout=SECONDS)
        with session.coverage(timeout=SECONDS) as second:
            session.restore("before", timeout=SECONDS)
            session.exec("modprobe brd && cat /dev/ram0 >/dev/null", timeout=SECONDS, check=True)
            with pytest.raises(StateError, match="recorded already"):
                session.coverage().begin()
        assert len(second.lines("drivers/block/brd.c")) > 50
        assert second.lines("fs/proc/version.c") == set()
        assert second.notes == ()

        path = tmp_path / "kernel.coverage"
        first.save(path, context="version")
        second.save(path, context="brd", append=True)
    data = library.Data(path)
    source = str(first.code.root / "fs/proc/version.c")
    assert data.contexts_of(source) == {line: ["version"] for line in sorted(SHOW)}
    assert data.files(["brd"]) == [str(first.code.root / "drivers/block/brd.c")]


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with DebugSession(
        vm.launch(launched(trace_ready="yes"), bound=True, timeout=SECONDS), owned=True
    ) as session:
        session.exec("true", timeout=SECONDS)
        assert status_of(["cov", "stop", session.name]) == 1
        assert "no coverage of" in capsys.readouterr().err
        assert status_of(["cov", "start", session.name]) == 0
        session.exec("cat /proc/version", timeout=SECONDS, check=True)
        # What was recorded is kept until it is written.
        (tmp_path / "file").touch()
        assert status_of(["cov", "stop", session.name, "--file", "file/x", "--context", "lost"]) == 3
        assert "goes on recording" in capsys.readouterr().err
        assert status_of(["cov", "stop", session.name, "--context", "version"]) == 0
        assert status_of(["cov", "stop", session.name]) == 1
    capsys.readouterr()
    assert status_of(["cov", "report", "fs/proc/version.c", "--lcov", "out.info"]) == 0
    assert {"DA:12,1", "DA:23,0"} <= set((tmp_path / "out.info").read_text().splitlines())
    assert status_of(["cov", "report", "fs/prco"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_vm_without_the_plugin_is_refused() -> None:
    with DebugSession(
        vm.launch(launched(trace_ready="no", halt=True), bound=True, timeout=SECONDS), owned=True
    ) as session:
        with pytest.raises(StateError, match="coverage needs vmdebug's plugin in QEMU") as refused:
            session.coverage().begin()
        assert 'accel="tcg"' in refused.value.hint


def test_pytest_records_each_test(
    cache: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))  # pytester sets HOME to a new directory
    pytester.makepyfile(
        """
        def test_version(session):
            session.exec("cat /proc/version", timeout=120, check=True)


        def test_uptime(session):
            session.exec("cat /proc/uptime", timeout=120, check=True)
        """
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-n2", "--vmdebug-accel=tcg",
        "--vmdebug-cov=fs/proc/version.c", "--vmdebug-cov=fs/proc/uptime.c",
        "--vmdebug-cov-report=term", "--vmdebug-cov-report=html:pages",
    )  # fmt: skip
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*vmdebug coverage*", "fs/proc/version.c *", "wrote pages", "data file: kernel.coverage"]
    )
    data = library.Data(pytester.path / "kernel.coverage")
    (uptime, version) = data.files(())
    assert {tuple(each) for each in data.contexts_of(version).values()} == {
        ("test_pytest_records_each_test.py::test_version",)
    }
    assert {tuple(each) for each in data.contexts_of(uptime).values()} == {
        ("test_pytest_records_each_test.py::test_uptime",)
    }
    assert not list(pytester.path.glob("kernel.coverage.gw*"))
