"""What the lab's pytest plugin tells of each test, and which tests it leaves out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline

LAB = Path(__file__).parents[2] / "kvmlab"

TESTS = """
import pytest

@pytest.mark.parametrize("word", ["one", "two words"])
def test_passes(word): pass

def test_passes_not(): assert False

@pytest.fixture
def ends_badly():
    yield
    assert False

def test_at_its_end(ends_badly): pass
"""


def _told(directory: Path, *arguments: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "lab_reports", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(LAB)}
    ended = process.run(command, cwd=directory, env=environment, deadline=Deadline.after(600), check=False)
    lines = [line.split(maxsplit=4) for line in ended.stdout.splitlines() if line.startswith("lab: ")]
    return {f"{line[1]} {line[4]}" for line in lines}


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "two"])
def test_each_test_is_told_and_what_has_passed_is_left_out(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    failed = {"failed test_it.py::test_passes_not", "failed test_it.py::test_at_its_end"}
    passed = {"passed test_it.py::test_passes[one]", "passed test_it.py::test_passes[two words]"}
    assert _told(tmp_path, *workers) == failed | passed
    (tmp_path / "passed").write_text("test_it.py::test_passes[two words]\ntest_it.py::test_pass\n")
    assert _told(tmp_path, *workers) == failed | passed - {"passed test_it.py::test_passes[two words]"}
