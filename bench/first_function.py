"""`start --halt` and `attach --until start_kernel`, which two benchmarks time."""

from __future__ import annotations

import time
from pathlib import Path

from bench.figure import VMDEBUG
from vmdebug import process
from vmdebug.deadline import Deadline

SECONDS = 600.0
SYMBOL = "start_kernel"


def times(guest: str | Path, *options: str, name: str, holds: str = "1") -> tuple[float, float]:
    """Start a halted guest under TCG, run it to its first function, and stop it.

    Args:
        guest: GUEST.
        options: Further options of `vmdebug start`.
        name: The VM's name.
        holds: An expression that must be true in that function.

    Returns:
        The seconds of `start`, and those of `attach`.
    """
    begin = time.perf_counter()
    _run("start", guest, "--accel", "tcg", "--halt", "--name", name, *options)
    try:
        started = time.perf_counter()
        trace = _run("attach", name, "--batch", "--until", SYMBOL, "-ex", "bt", "-ex", f"print {holds}")
        reached = time.perf_counter()
    finally:
        _run("stop", "--force", name)
    assert f"#0  {SYMBOL}" in trace, trace
    assert "$1 = 1" in trace, f"{holds} is false: {trace}"
    return started - begin, reached - started


def _run(*words: str | Path) -> str:
    return process.run([VMDEBUG, *words], deadline=Deadline.after(SECONDS)).stdout
