"""Reads what a kselftest printed: by the kernel's runner, or by its program run directly."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vmdebug.ktests import ktap
from vmdebug.ktests.results import KernelTestPoint, Status

_LINES = 400
"""How many of its last lines a test's diagnostics keep."""

_SKIP, _XFAIL, TIMED_OUT = 4, 2, 124
"""Exit statuses: KSFT_SKIP and KSFT_XFAIL of kselftest.h, and that of timeout(1)."""

_RESULT = re.compile(r"^(?:not )?ok \d+ selftests: ")


def from_runner(test: str, lines: Sequence[str], seconds: float) -> KernelTestPoint:
    """Return the point of a test from the output of the kernel's runner.

    Args:
        test: Its name.
        lines: The output: the result of the test, and before it what the test printed, each line after "# ".
        seconds: Its timeout, for a test that the runner did not end.
    """
    at = next((at for at, line in enumerate(lines) if _RESULT.match(line)), None)
    inner = [line[2:] if line.startswith("# ") else line.removeprefix("#") for line in lines[:at]]
    inner = [line for line in inner if not line.startswith("selftests: ")]
    begun = next((at for at, line in enumerate(inner) if line.startswith("1..")), -1) + 1  # the runner's plan
    if at is None:
        return direct(test, inner[begun:], TIMED_OUT, seconds)
    outer = ktap.read([lines[at]])[0]
    return _with_output(test, inner[begun:], outer.status, outer.directive)


def direct(
    test: str, lines: Sequence[str], status: int | None, seconds: float, *, xfails: bool = False
) -> KernelTestPoint:
    """Return the point of a test whose program was run directly, by the rules of runner.sh.

    Args:
        test: Its name.
        lines: What it printed.
        status: Its exit status; None if that is unknown.
        seconds: Its timeout.
        xfails: Whether the runner of this kernel takes status 2 for an expected failure.
    """
    match status:
        case 0:
            return _with_output(test, lines, "passed", "")
        case 4:
            return _with_output(test, lines, "skipped", "SKIP")
        case 2 if xfails:
            return _with_output(test, lines, "xfailed", "XFAIL")
        case 124:
            return _with_output(test, lines, "failed", f"TIMEOUT {seconds:g} seconds")
        case _:
            return _with_output(test, lines, "failed", "" if status is None else f"exit={status}")


def _with_output(test: str, lines: Sequence[str], status: Status, directive: str) -> KernelTestPoint:
    reader = ktap.Reader()
    for line in lines:
        reader.line(line)
    # If the program says that it passed, its points do not have to match its plan.
    points = reader.points(judged=status in ("passed", "skipped"))
    said = reader.rest if points else tuple(lines[-_LINES:])
    if directive == "SKIP":
        reason = reader.skip.partition(" ")[2] or next((line for line in reversed(said) if line.strip()), "")
        directive = f"SKIP {reason.removeprefix('# ').removeprefix('SKIP').strip()}".strip()
    return KernelTestPoint(name=test, status=status, directive=directive, diagnostics=said, points=points)
