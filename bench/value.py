"""A whole `task_struct` as a Python value, against GDB's `print` of it.

vmdebug reads the bytes in one round trip, and decodes them with a type that GDB has described once.
"""

from __future__ import annotations

import vmdebug
from bench.figure import Figure, in_turn

GOAL = 2.0
ROUNDS = 31
TASK = "init_task"


def figures() -> list[Figure]:
    """Time both on one stopped guest."""
    with vmdebug.start("builtin") as session:
        session.exec("true", timeout=300)
        gdb = session.gdb
        ours, baseline = in_turn(
            lambda: _whole(gdb.evaluate(TASK).to_python_()),
            lambda: _printed(gdb.console(f"print {TASK}")),
            rounds=ROUNDS,
        )
    return [Figure("value", ours * 1e3, baseline * 1e3, GOAL, "ms", f"GDB's print of {TASK}")]


def _whole(task: dict[str, object]) -> None:
    assert task["comm"] == "swapper/0", task["comm"]


def _printed(text: str) -> None:
    assert "swapper/0" in text, text[:200]
