"""The examples of recordings find the cause of each bug of their module."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.fixtures import kernelmodule
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel

EXAMPLE = Path(__file__).parents[2] / "examples/record_bugs"


@pytest.fixture(scope="module")
def bugs(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kernelmodule.build(kernel, EXAMPLE / "bugs.c", tmp_path_factory.mktemp("bugs"))


def example(name: str, bugs: Path) -> str:
    done = process.run(
        [sys.executable, EXAMPLE / name, bugs],
        check=False,
        cwd=EXAMPLE.parents[1],
        deadline=Deadline.after(600),
    )
    assert done.status == 0, done.stdout + done.stderr
    return done.stdout


def test_from_a_use_after_free_back_to_the_free(bugs: Path) -> None:
    said = example("use_after_free.py", bugs)
    assert re.search(r"^bugs_session \(0x[0-9a-f]+\) was freed at instruction \d+:$", said, re.MULTILINE)
    assert re.search(r"^#1 +close_session at .*bugs\.c:\d+$", said, re.MULTILINE)


def test_from_a_leaked_reference_back_to_who_took_it(bugs: Path) -> None:
    said = example("refcount_leak.py", bugs)
    found = re.findall(r"instruction \d+: (\d+ -> \d+) by (\w+)", said)
    assert found == [
        ("3 -> 2", "put_object"),
        ("2 -> 3", "get_object"),
        ("1 -> 2", "peek_object"),
        ("2 -> 1", "put_object"),
        ("1 -> 2", "get_object"),
    ]
    assert "peek_object took a reference that nobody gave back:" in said
    assert "get_object took" not in said
    assert said.endswith(": the count begins\n")
