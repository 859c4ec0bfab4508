"""A profile as a page: the flame graph, and tables of functions and tasks; one file without any other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from vmdebug.trace.profile.formats import flame_svg
from vmdebug.trace.profile.formats.amounts import percent, shown
from vmdebug.trace.profile.formats.changes import changes
from vmdebug.trace.profile.profile import Profile, ProfileFrame

STYLE = (Path(__file__).parent / "page.css").read_text()

_ROWS = 100

_LEGEND = (("kernel", 32), ("module", 112), ("user space", 210))


def render(profile: Profile, before: Profile | None = None) -> str:
    """Return a page.

    Args:
        profile: The profile.
        before: A profile to compare it with, or None.
    """
    title = f"Profile of {profile.vm}" if before is None else f"Profiles of {before.vm} and {profile.vm}"
    tables = _tables(profile) if before is None else _changed(profile, before)
    legend = "".join(f'<span style="background:hsl({hue},80%,70%)">{name}</span>' for name, hue in _LEGEND)
    notes = "".join(f"<p>{escape(each)}</p>" for each in profile.notes)
    return f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<h1>{escape(title)}</h1>
<p>{escape(facts(profile))}</p>
<input id="search" type="search" placeholder="Search functions" aria-label="Search functions">
{f'<p class="legend">{legend}</p>' if before is None else ""}
{flame_svg.graph(profile, before)}
{notes}
{tables}
</html>
"""


def facts(profile: Profile) -> str:
    """Return how a profile was taken, on one line."""
    kernel = f"Linux {profile.kernel}; " if profile.kernel else ""
    every = f", one each {shown(profile.period, profile.unit)}" if profile.period else ""
    return (
        f"{kernel}{len(profile)} samples by {profile.collector}{every}, in {profile.seconds:.3g} s;"
        f" {shown(profile.total, profile.unit)} in all"
    )


def _tables(profile: Profile) -> str:
    total = profile.total
    functions = [
        (percent(own, total), percent(whole, total), _name(frame))
        for frame, own, whole in profile.functions()[:_ROWS]
    ]
    tasks = [
        (percent(weight, total), f"{escape(task.comm)} <small>{task.tid}</small>")
        for task, weight in profile.by_task()[:_ROWS]
    ]
    return _table("Functions", ("itself", "with callees", "function"), functions) + _table(
        "Tasks", ("share", "task"), tasks
    )


def _changed(profile: Profile, before: Profile) -> str:
    rows = [
        (f"{100 * each.change:+.1f}", percent(each.before, 1), percent(each.after, 1), _name(each.frame))
        for each in changes(profile, before)[:_ROWS]
    ]
    return _table("Functions, by change of their own share", ("points", "before", "after", "function"), rows)


def _name(frame: ProfileFrame) -> str:
    return f"{escape(frame.name)} <small>{escape(frame.where)}</small>"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of numbers, with names in the last column, as HTML."""
    kinds = ["number"] * (len(head) - 1) + ["name"]
    cells = "".join(f'<th class="{kind}">{name}</th>' for kind, name in zip(kinds, head, strict=True))
    lines = "\n".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<h2>{title}</h2><div class="wide"><table><tr>{cells}</tr>\n{lines}\n</table></div>\n'
