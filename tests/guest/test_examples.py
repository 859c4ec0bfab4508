"""The examples pass, one after the other and in parallel."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED_MEMORY = Path("/dev/shm")


def clones() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith("vmdebug")}


@pytest.mark.parametrize("workers", [0, 4])
def test_the_suite_passes_and_leaves_nothing(workers: int, tmp_path: Path) -> None:
    before = clones()
    run = process.run(
        [sys.executable, "-m", "pytest", EXAMPLES, "-q", "-n", str(workers), "-p", "no:cacheprovider"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
        deadline=Deadline.after(240),
    )
    assert run.status == 0, run.stdout + run.stderr
    assert re.search(r"^9 passed", run.stdout, re.MULTILINE)
    assert clones() <= before
