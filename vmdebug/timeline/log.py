"""Reads what `initcall_debug` makes the kernel log; see init/main.c and drivers/base/dd.c.

The kernel measures each call with its clock and logs it in microseconds, after the call. A call began at the
stamp of that line minus the duration. Until a clocksource is chosen, early in the boot, that clock moves
by ticks: then the stamps of the lines before and after an initcall are more exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vmdebug.timeline.boot import Kind, Step

PARAMETERS = "initcall_debug printk.ignore_loglevel=0 log_buf_len=8M"
"""Kernel parameters. The lines are not for the console, whose output would take most of the boot's time."""

_LINE = re.compile(r"^(?:<\d+>)?\[\s*(\d+\.\d+)\](?:\[\s*\w+\])?\s(.*)$")
_CALLED = re.compile(r"calling  (?P<name>[^\s+]+)")
_RETURNED = re.compile(
    r"initcall (?P<name>[^\s+]+)(?:\+\S+)?(?: \[(?P<module>\w+)\])?"
    r" returned (?P<result>-?\d+) after (?P<us>\d+) usecs"
)
_PROBED = re.compile(r"probe of (?P<name>\S+) returned (?P<result>-?\d+) after (?P<us>\d+) usecs")
_WAITED = re.compile(r"async_continuing @ (?P<pid>\d+) after (?P<us>\d+) usec")
_TICK_US = 1000
"""All ticks are multiples of it: HZ is 100, 250 or 1000."""

_INIT = re.compile(r"Run (\S+) as init process")


def parse(lines: Iterable[str]) -> tuple[list[Step], dict[str, float]]:
    """Return the steps and the marks in a kernel's log.

    Args:
        lines: Its lines, with times, as dmesg prints them.
    """
    steps: list[Step] = []
    marks: dict[str, float] = {}
    called: dict[str, float] = {}
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        at, text = float(found[1]), found[2]
        if call := _CALLED.match(text):
            called[call["name"]] = at
        elif (step := _step(at, text, called)) is not None:
            steps.append(step)
        elif init := _INIT.search(text):
            marks.setdefault(f"run {init[1]}", at)
    return sorted(steps, key=lambda each: each.start), marks


def _step(at: float, text: str, called: dict[str, float]) -> Step | None:
    if match := _RETURNED.match(text):
        name, module = match["name"], match["module"] or ""
        us = int(match["us"])
        if us % _TICK_US == 0 and name in called:
            us = round((at - called[name]) * 1e6)
        kind: Kind = "module" if module else "initcall"
        return _made(kind, name, at, us, owner=module, result=int(match["result"]))
    if match := _PROBED.match(text):
        return _made("probe", match["name"], at, int(match["us"]), result=int(match["result"]))
    if match := _WAITED.match(text):
        return _made("wait", f"asynchronous calls (task {match['pid']})", at, int(match["us"]))
    return None


def _made(kind: Kind, name: str, at: float, us: int, *, owner: str = "", result: int = 0) -> Step:
    seconds = us / 1e6
    start = max(at - seconds, 0.0)
    return Step(kind=kind, name=name, start=start, seconds=seconds, owner=owner, result=result)
