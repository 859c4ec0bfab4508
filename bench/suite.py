"""100 tests that each use `vm` and run one command, against the same tests that each boot a guest.

Each is one pytest run. Only 20 of the booting tests run, because 100 would take minutes; their time, without
pytest's own start, is extrapolated to 100.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure
from vmdebug import process
from vmdebug.deadline import Deadline

GOAL = 0.2
TESTS = 100
BOOTED = 20
SECONDS = 900.0

_TEST = """\
import pytest


@pytest.mark.parametrize("number", range({tests}))
def test_one_command(vm, number):
    assert vm.exec(f"echo {{number}}").stdout == f"{{number}}\\n"
"""

_BOOTING = """\
import pytest
import vmdebug


@pytest.fixture
def vm():
    with vmdebug.start("builtin", accel="tcg") as session:
        yield session.vm
"""


def figures() -> list[Figure]:
    """Time both, after a run without tests that fills the page cache."""
    start = _seconds(tests=0)
    ours = _seconds(tests=TESTS)
    booting = start + (_seconds(tests=BOOTED, conftest=_BOOTING) - start) * TESTS / BOOTED
    return [Figure("suite", ours, booting, GOAL, "s", f"{TESTS} tests, a boot each")]


def _seconds(*, tests: int, conftest: str = "") -> float:
    """Return how many seconds a pytest run takes."""
    with tempfile.TemporaryDirectory(prefix="vmd-") as name:
        directory = Path(name)
        (directory / "pytest.ini").write_text("[pytest]\nvmdebug_guest = builtin\nvmdebug_accel = tcg\n")
        (directory / "conftest.py").write_text(conftest)
        (directory / "test_suite.py").write_text(_TEST.format(tests=tests))
        argv = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name)
        begin = time.perf_counter()
        done = process.run(argv, cwd=directory, deadline=Deadline.after(SECONDS), check=tests > 0)
        took = time.perf_counter() - begin
    # Without parameters pytest skips the test.
    assert f"{tests} passed" in done.stdout or not tests, done.stdout
    return took
