"""`vmdebug --help` against `import typer`: the start-up time of the command line."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.figure import VMDEBUG, Figure, in_turn
from vmdebug import process
from vmdebug.deadline import Deadline

GOAL = 1.5
ROUNDS = 21


def figures() -> list[Figure]:
    """Time both."""
    ours, baseline = in_turn(
        lambda: _run(VMDEBUG, "--help"), lambda: _run(sys.executable, "-c", "import typer"), rounds=ROUNDS
    )
    return [Figure("help", ours * 1000, baseline * 1000, GOAL, "ms", 'python -c "import typer"')]


def _run(*argv: str | Path) -> None:
    process.run(argv, deadline=Deadline.after(30))
