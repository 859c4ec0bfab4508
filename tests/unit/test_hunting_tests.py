"""Tests of pytest as workloads of hunts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from vmdebug.guest_options import GuestOptions
from vmdebug.hunting.hunted_session import NotInHuntError, SteppedSession
from vmdebug.hunting.outcome import Job
from vmdebug.hunting.run import Runner
from vmdebug.vm.machine import Vm

TESTS = """\
import pytest


def test_passes(session, vm):
    assert session.vm is vm


@pytest.mark.vmdebug(guest="builtin")
def test_fails(session):
    found = 396
    assert found == 400


def test_says_fail(session):
    pytest.fail("an update is lost")


def test_needs_gdb(gdb):
    pass


def test_needs_another_fixture(sessions):
    pass


@pytest.mark.parametrize("count", [1, 2])
def test_several(count):
    pass


def test_skipped():
    pytest.skip("not here")
"""


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hunted") / "test_hunted_workload.py"
    path.write_text(TESTS)
    return path


def call(tests: Path, name: str) -> tuple[str, str, str] | None:
    job = Job(options=GuestOptions(), script=str(tests), text=TESTS, test=f"{tests}::{name}")
    vm = SimpleNamespace(shell=SimpleNamespace(run=None))
    return Runner(job)._call(SteppedSession(cast("Vm", vm)))


def test_one_that_passes_is_no_failure_each_time(tests: Path) -> None:
    assert [call(tests, "test_passes") for _ in range(2)] == [None, None]
    assert call(tests, "test_several[2]") is None


def test_one_that_fails_has_its_traceback(tests: Path) -> None:
    failure = call(tests, "test_fails")
    assert failure is not None
    kind, headline, text = failure
    assert (kind, headline) == ("error", "AssertionError: assert 396 == 400")
    assert f'File "{tests}", line 11, in test_fails' in text
    assert "site-packages" not in text
    said = call(tests, "test_says_fail")
    assert said is not None
    assert said[1] == "AssertionError: an update is lost"


def test_one_that_needs_gdb_ends_the_hunt(tests: Path) -> None:
    with pytest.raises(NotInHuntError, match=r"session\.gdb cannot be used in a hunt"):
        call(tests, "test_needs_gdb")


@pytest.mark.parametrize(
    "name", ["test_nowhere", "test_several", "test_skipped", "test_needs_another_fixture"]
)
def test_what_is_not_one_test_is_refused(tests: Path, name: str) -> None:
    with pytest.raises(NotInHuntError, match=f"{name} cannot be hunted: it is not one test that runs"):
        call(tests, name)
