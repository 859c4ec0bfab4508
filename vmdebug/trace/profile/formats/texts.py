"""Profiles as text: tables for people, and folded stacks for other programs."""

from __future__ import annotations

from collections.abc import Iterator

from vmdebug.trace.profile.formats.amounts import percent
from vmdebug.trace.profile.formats.changes import changes
from vmdebug.trace.profile.formats.page import facts
from vmdebug.trace.profile.profile import Profile

_ROWS = 30
_TASKS = 8


def table(profile: Profile, before: Profile | None = None) -> str:
    """Return the heaviest functions and tasks, or the functions that have changed most."""
    lines = list(_changed(profile, before) if before is not None else _heaviest(profile))
    return "\n".join(lines) + "\n"


def _heaviest(profile: Profile) -> Iterator[str]:
    total = profile.total
    yield facts(profile)
    yield ""
    yield "  ITSELF  WITH CALLEES  FUNCTION"
    for frame, own, whole in profile.functions()[:_ROWS]:
        yield f"{percent(own, total):>8}  {percent(whole, total):>12}  {_named(frame.name, frame.where)}"
    yield ""
    yield "   SHARE  TASK"
    for task, weight in profile.by_task()[:_TASKS]:
        yield f"{percent(weight, total):>8}  {task.comm or '?'}:{task.tid}"


def _changed(profile: Profile, before: Profile) -> Iterator[str]:
    yield "  POINTS    BEFORE     AFTER  FUNCTION"
    for each in changes(profile, before)[:_ROWS]:
        shares = f"{percent(each.before, 1):>8}  {percent(each.after, 1):>8}"
        yield f"{100 * each.change:+8.1f}  {shares}  {_named(each.frame.name, each.frame.where)}"


def _named(name: str, where: str) -> str:
    return name if not where or name == f"[{where}]" else f"{name} [{where}]"


def folded(profile: Profile, before: Profile | None = None) -> str:
    """Return a line for each stack: its frames, the outermost first, separated by semicolons, and its weight.

    It is the format of flamegraph.pl; compared with another profile it has two weights, the earlier first, as
    difffolded.pl writes them.
    """
    stacks = profile.folded()
    if before is None:
        rows = [(frames, str(weight)) for frames, weight in stacks.items()]
    else:
        old = before.folded()
        rows = [(each, f"{old.get(each, 0)} {stacks.get(each, 0)}") for each in {**old, **stacks}]
    lines = [f"{';'.join(_clean(each.name) for each in frames)} {weights}" for frames, weights in rows]
    return "".join(f"{line}\n" for line in sorted(lines))


def _clean(name: str) -> str:
    return name.replace(";", ":").replace("\n", " ")
