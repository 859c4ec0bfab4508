"""Profiles as `perf script` prints them, which profiler.firefox.com, speedscope and others import.

Firefox Profiler takes functions of a file whose name ends with `.ko`, or of kallsyms, for the kernel's.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmdebug.trace.profile.profile import Profile, ProfileFrame

_EVENTS = {"ns": "cpu-clock"}


def render(profile: Profile) -> str:
    """Return a paragraph for each sample."""
    return "".join(_samples(profile))


def _samples(profile: Profile) -> Iterator[str]:
    event = _EVENTS.get(profile.unit, profile.unit)
    stacks = [
        "".join(f"\t{each:16x} {_function(profile.frames[each])}\n" for each in reversed(stack))
        for stack in profile.stacks
    ]
    for each in profile.samples:
        task = profile.tasks[each.task]
        comm = task.comm or "unknown"
        yield f"{comm} {task.pid}/{task.tid} [{each.cpu:03}] {each.time:.9f}: {each.weight:10} {event}:\n"
        yield f"{stacks[each.stack]}\n"


def _function(frame: ProfileFrame) -> str:
    where = frame.where or "unknown"
    if frame.kind == "kernel":
        where = "[kernel.kallsyms]"
    elif frame.kind == "module":
        where = f"{where}.ko"
    return f"{frame.name} ({where})"
