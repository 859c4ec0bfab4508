"""kselftests and KUnit suites on real kernels, by the API, the command line and pytest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.fixtures import kunitmodule
from tests.fixtures.accel import SECONDS
from vmdebug import cli, vm
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError, VmError
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.ktests import kselftest, kselftest_place, selftests
from vmdebug.ktests.kselftest_place import Asked
from vmdebug.ktests.selftests import Collection
from vmdebug.progress import silent
from vmdebug.session import DebugSession

pytest_plugins = ["pytester"]

SUITE = "vmdebug-failing"

PROGRAMS = {
    "passes": '#!/bin/sh\necho "TAP version 13\n1..2\nok 1 first\nok 2 second # SKIP no second"',
    "fails": '#!/bin/sh\necho "TAP version 13\n1..1\n# own.c:7:main:Expected 1 == 2\nnot ok 1 sum"; exit 1',
    "skips": '#!/bin/sh\necho "1..0 # SKIP no such device"; exit 4',
    "hangs": "#!/bin/sh\necho begun; sleep 1000",
    "needs": "#!/usr/bin/env python9\nprint(1)",
    "warns": "#!/bin/sh\nmodprobe lkdtm; echo WARNING >/sys/kernel/debug/provoke-crash/DIRECT; echo done",
    "script": "#!/bin/sh\necho by its interpreter",
    "panics": "#!/bin/sh\necho going; echo PANIC >/sys/kernel/debug/provoke-crash/DIRECT",
}


@pytest.fixture
def session(builtin: LaunchSpec) -> Iterator[DebugSession]:
    with (
        vm.launch(builtin, bound=True, timeout=SECONDS) as started,
        DebugSession(started, owned=False) as opened,
    ):
        opened.exec("true", timeout=SECONDS)
        yield opened


@pytest.fixture(scope="module")
def module(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module with the suite `vmdebug-failing`."""
    return kunitmodule.build(kernel, tmp_path_factory.mktemp("module"))


@pytest.fixture
def collection(kernel: Kernel, tmp_path: Path) -> Collection:
    """A collection of scripts, as `make install` lays it out, with the runner of the kernel's source."""
    directory = tmp_path / "own"
    source = selftests.source_of(kernel) / selftests.WHERE
    shutil.copytree(source / "kselftest", directory / "kselftest")
    shutil.copy(source / "run_kselftest.sh", directory)
    (directory / "own").mkdir()
    for name, text in PROGRAMS.items():
        (directory / "own" / name).write_text(f"{text}\n")
        (directory / "own" / name).chmod(0o644 if name == "script" else 0o755)
    for script in ("run_kselftest.sh", "kselftest/runner.sh"):
        (directory / script).chmod(0o755)
    (directory / "kselftest-list.txt").write_text("".join(f"own:{name}\n" for name in PROGRAMS))
    return Collection("own", directory, tuple(PROGRAMS), timeout=3)


def run(session: DebugSession, collection: Collection, *tests: str) -> tuple[list[str], str]:
    """Run tests, and return what became of each, and the note."""
    asked = [Asked(collection, tests, collection.timeout)]
    deadline = Deadline.after(SECONDS)
    with kselftest_place.placed(session.vm, asked, report=silent, deadline=deadline) as place:
        ended = list(kselftest.run(session.vm, asked, place, report=silent, deadline=deadline))
    told = []
    for name, point in ended:
        assert name == "own"
        kinds = [trouble.kind for trouble in point.troubles]
        told.append(f"{point.name}: {point.status} {point.directive} {kinds or ''}".rstrip(" "))
        if point.name == "passes" and point.status == "passed":
            first, second = point.points
            assert (first.status, second.status, second.reason) == ("passed", "skipped", "no second")
        if point.name == "fails":
            assert [(each.name, each.place) for each in point.points] == [("sum", "own.c:7")]
    return told, place.note


def test_each_kselftest_ends_as_it_says_and_owns_the_kernels_trouble(
    session: DebugSession, collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ("passes", "fails", "skips", "hangs", "needs", "warns", "script")
    expected = [
        "passes: passed",
        "fails: failed exit=1",
        "skips: skipped SKIP no such device",
        "hangs: failed TIMEOUT 3 seconds",
        "needs: skipped SKIP the guest has no python9",
        "warns: passed  ['warn']",
        "script: passed",
    ]
    told, note = run(session, collection, *alone)
    assert told == expected
    assert note == "the tests are run one by one: the kernel's runner needs timeout --foreground"

    # Without timeout(1), busybox has all that the runner needs; vmdebug then ends the test that hangs.
    session.exec("rm /usr/bin/timeout", check=True)
    told, note = run(session, collection, *(name for name in alone if name != "skips"))
    assert told == [line for line in expected if "skips" not in line]
    assert note == ""
    assert session.exec("ls -d /var/tmp/kselftest.* /tmp/kselftest.*").stdout == ""
    assert session.exec("ps | grep '[s]leep 1000$'").stdout == ""

    with pytest.raises(VmError, match="the guest cannot run own:needs: it has no python9") as raised:
        run(session, collection, "needs")
    assert "--root debian" in raised.value.hint

    assert cli.status_of(["kselftest", session.name, "--list"]) == 0
    assert {"futex", "net/forwarding", "timers"} <= set(capsys.readouterr().out.split())
    assert cli.status_of(["kselftest", session.name, "size"]) == 0
    assert capsys.readouterr().out.startswith("size: get_size                               ok ")

    told, _ = run(session, collection, "panics", "passes")
    assert told == ["panics: failed the guest died ['panic']", "passes: missing not run: the guest died"]


def test_kunit_by_the_api_and_the_command_line(
    session: DebugSession, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = f"{module.parent}/failing_kunit.c:{kunitmodule.line_of('1 + 1, 3')}"
    results = session.kunit(module, "example", "list_test", timeout=SECONDS)
    points = dict(results.judged())
    assert {path: point.status for path, point in points.items() if path.startswith(SUITE)} == {
        f"{SUITE}: sum_is_right": "passed",
        f"{SUITE}: sum_is_wrong": "failed",
        f"{SUITE}: has_no_device": "skipped",
        f"{SUITE}: warns": "passed",
        f"{SUITE}: is_even: number 2": "passed",
        f"{SUITE}: is_even: number 3": "failed",
        f"{SUITE}: is_even: number 4": "passed",
    }
    assert [path for path, _ in results.failures()] == [
        f"{SUITE}: sum_is_wrong",
        f"{SUITE}: warns",
        f"{SUITE}: is_even: number 3",
    ]
    assert points[f"{SUITE}: sum_is_wrong"].place == wrong
    assert points[f"{SUITE}: has_no_device"].reason == "no such device"
    (splat,) = points[f"{SUITE}: warns"].troubles
    assert (splat.kind, "warns+0x" in splat.text) == ("warn", True)
    assert [path for path, _ in results.allowing({"warn"}).failures()] == [
        f"{SUITE}: sum_is_wrong",
        f"{SUITE}: is_even: number 3",
    ]
    names = [point.name for point in results.points]
    assert names == [SUITE, "example", "list-kunit-test", "hlist"]
    assert len(results.points[2].points) >= 39
    assert results.points[2].ok
    assert all(point.duration for point in points.values())
    assert session.exec("ls /sys/kernel/debug/kunit").stdout == ""  # what was loaded for it is unloaded

    # The kernel's log has the same, with the suites that ran at boot.
    logged = dict(session.kunit(SUITE, boot=True).judged())
    assert {path: point.status for path, point in logged.items()} == {
        path: point.status for path, point in points.items() if path.startswith(SUITE)
    }
    assert len(logged[f"{SUITE}: warns"].troubles) == 1

    with pytest.raises(UsageError, match="no KUnit suite or module 'exmple'") as raised:
        session.kunit("exmple")
    assert raised.value.hint == "did you mean 'example'?"

    name = session.name
    assert cli.status_of(["kunit", name, str(module)]) == 1
    done = capsys.readouterr()
    assert (
        f"failed: sum_is_wrong  at {wrong}\n    | sum_is_wrong: EXPECTATION FAILED at {wrong}\n" in done.out
    )
    assert done.out.endswith("3 passed, 3 failed, 1 skipped\n")
    assert "--- kernel warn ---" in done.err
    assert "failing_kunit.c:" in done.err.partition("--- kernel warn ---")[2]
    assert cli.status_of(["kunit", name, "example", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"] == {"passed": 2, "failed": 0, "skipped": 2, "xfailed": 0, "missing": 0}
    assert facts["points"][0]["points"][1]["directive"] == "SKIP this test should be skipped"
    assert cli.status_of(["kunit", name, "--list"]) == 0
    assert "\nhlist            list_test           no\n" in capsys.readouterr().out
    assert cli.status_of(["kunit", name, "--boot", SUITE, "--allow", "warn"]) == 1
    assert "4 passed, 2 failed, 1 skipped\n" in capsys.readouterr().out


def test_kselftests_and_kunit_suites_are_subtests_in_pytest(
    pytester: pytest.Pytester, module: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\nvmdebug_accel = tcg\n")
    pytester.makepyfile(
        f"""
        import pytest

        def test_sleeps(ktests):
            results = ktests.kselftest("timers:nanosleep", test_timeout=200)
            assert results.counts.passed == 4

        def test_suites(ktests, session):
            results = ktests(session.kunit({str(module)!r}, "example"))
            assert results.counts.passed == 5
            assert session.exec("echo on").stdout == "on\\n"

        def test_not_reported(session):
            session.kunit({str(module)!r})
            session.exec("true")
            print("reached")

        @pytest.mark.vmdebug(allow=["warn"])
        def test_allowed(ktests):
            ktests.kunit({str(module)!r})
        """
    )
    result = pytester.runpytest_subprocess("--junitxml=junit.xml", "-rfs", timeout=400)
    wrong = f"{module.parent}/failing_kunit.c:{kunitmodule.line_of('1 + 1, 3')}"
    result.stdout.fnmatch_lines(
        [
            f"*_ test_suites ?{SUITE}: sum_is_wrong? _*",
            f"{wrong}: {SUITE}: sum_is_wrong",
            "Expected 1 + 1 == 3, but",
            f"*_ test_suites ?{SUITE}: warns? _*",
            "*kernel trouble while it ran: kernel warn: *",
            "*- vmdebug: kernel warn -*",
            "*WARNING: CPU: *",
            "*_ test_suites _*",
            "*contains 3 failed subtests*",
            "*_ test_not_reported _*",
            "reached",
            "FAILED *::test_suites*",
            "FAILED *::test_allowed*",
        ]
    )
    cases = {
        str(case.get("name")): case
        for case in ET.parse(pytester.path / "junit.xml").iter("testcase")  # noqa: S314 - pytest wrote it
    }
    assert cases["test_sleeps [timers: nanosleep: CLOCK_REALTIME]"].find("failure") is None
    skipped = cases[f"test_suites [{SUITE}: has_no_device]"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "no such device"
    warned = cases[f"test_suites [{SUITE}: warns]"].findtext("failure", "")
    assert "WARNING: CPU: " in warned
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert failed == {
        "test_suites",
        f"test_suites [{SUITE}: sum_is_wrong]",
        f"test_suites [{SUITE}: warns]",
        f"test_suites [{SUITE}: is_even: number 3]",
        "test_not_reported",
        "test_allowed",
        f"test_allowed [{SUITE}: sum_is_wrong]",
        f"test_allowed [{SUITE}: is_even: number 3]",
    }


@pytest.fixture(scope="module")
def cache(kernel: Kernel) -> Path:
    """The cache with the builtin kernel; pytester sets HOME to another directory."""
    return next(path for path in kernel.image.parents if path.name == "vmdebug").parent
