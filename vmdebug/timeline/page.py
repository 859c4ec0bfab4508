"""One boot, or two side by side, as a page: a bar for each of the longest steps, and tables; one file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from vmdebug.timeline.boot import KINDS, Boot, Step, differences

STYLE = (Path(__file__).parent / "page.css").read_text()

_BARS = 60
_ROWS = 200
_ROW = 20
_COLOURS = {"initcall": 32, "module": 112, "probe": 265, "wait": 0, "unit": 210}
"""Hues of the kinds of steps."""

_RIGHT = 0.45
"""The text of a bar that ends beyond this share of the width is on its left."""


def render(boots: Sequence[Boot]) -> str:
    """Return a page of one boot with its longest steps, or of two with their largest differences."""
    title = " and ".join(boot.name for boot in boots)
    span = max(boot.end for boot in boots) or 1.0
    kinds = [kind for kind in KINDS if any(step.kind == kind for boot in boots for step in boot.steps)]
    legend = "".join(
        f'<span style="background:hsl({_COLOURS[kind]},75%,70%)">{kind}</span>' for kind in kinds
    )
    charts = "".join(_chart(boot, span) for boot in boots)
    tables = _changed(*boots) if len(boots) > 1 else _longest(boots[0])
    return f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Boot of {escape(title)}</title>
<style>{STYLE}</style>
<h1>Boot of {escape(title)}</h1>
<p class="legend">{legend}</p>
<div class="boots">{charts}</div>
{tables}
</html>
"""


def _chart(boot: Boot, span: float) -> str:
    longest = sorted(boot.steps, key=lambda step: -step.seconds)[:_BARS]
    bars = sorted(longest, key=lambda step: step.start)
    height = 24 + _ROW * len(bars)
    grid = "".join(
        f'<line class="grid" x1="{10 * n}%" x2="{10 * n}%" y1="18" y2="{height}"/>'
        f'<text x="{10 * n + 0.3}%" y="12">{span * n / 10:.2f} s</text>'
        for n in range(0, 10, 2)
    )
    marks = "".join(
        f'<line class="mark" x1="{100 * at / span:.3f}%" x2="{100 * at / span:.3f}%" y1="18" y2="{height}">'
        f"<title>{escape(name)}: {at:.3f} s</title></line>"
        for name, at in boot.marks.items()
    )
    rows = "".join(_bar(step, span, 22 + _ROW * number) for number, step in enumerate(bars))
    notes = "".join(f"<p>{escape(note)}</p>" for note in boot.notes)
    moments = ", ".join(f"{name} at {at:.3f} s" for name, at in boot.marks.items())
    facts = f"Linux {boot.kernel or '?'}; {boot.end:.3f} s; {len(boot.steps)} steps, {len(bars)} as bars"
    return (
        f"<div><h2>{escape(boot.name)}</h2><p>{escape('; '.join(filter(None, (facts, moments))))}</p>{notes}"
        f'<svg class="boot" height="{height}">{grid}{marks}{rows}</svg></div>'
    )


def _bar(step: Step, span: float, y: int) -> str:
    start, width = 100 * step.start / span, max(100 * step.seconds / span, 0.15)
    text = f"{step.name}  {shown(step.seconds)}"
    left = start + width > 100 * _RIGHT
    place = f'x="{start - 0.4:.3f}%" text-anchor="end"' if left else f'x="{start + width + 0.4:.3f}%"'
    return (
        f"<g><title>{escape(_title(step))}</title>"
        f'<rect x="{start:.3f}%" y="{y}" width="{width:.3f}%" height="{_ROW - 4}"'
        f' fill="hsl({_COLOURS[step.kind]},75%,62%)"/><text {place} y="{y + 12}">{escape(text)}</text></g>'
    )


def _title(step: Step) -> str:
    parts = [f"{step.kind} {step.name}", f"{shown(step.seconds)} from {step.start:.6f} s"]
    if step.owner:
        parts.append(f"module {step.owner}")
    if step.waited_for:
        parts.append(f"waited for {step.waited_for}")
    if step.result:
        parts.append(f"returned {step.result}")
    return "; ".join(parts)


def shown(seconds: float) -> str:
    """Return a time: "1.25 s", "3.1 ms"."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _longest(boot: Boot) -> str:
    steps = sorted(boot.steps, key=lambda step: -step.seconds)[:_ROWS]
    rows = [
        (shown(step.seconds), f"{step.start:.3f}", _name(step.kind, step.name, step.waited_for))
        for step in steps
    ]
    return _table("Longest steps", ("took", "from (s)", "step"), rows)


def _changed(before: Boot, after: Boot) -> str:
    rows = [
        (f"{1e3 * each.change:+.3g} ms", *map(_time, (each.before, each.after)), _name(each.kind, each.name))
        for each in differences(before, after)[:_ROWS]
    ]
    return _table("Differences, the largest first", ("change", "before", "after", "step"), rows)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else shown(seconds)


def _name(kind: str, name: str, waited_for: str = "") -> str:
    waited = f", after {escape(waited_for)}" if waited_for else ""
    return f"{escape(name)} <small>{kind}{waited}</small>"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    kinds = ["number"] * (len(head) - 1) + ["name"]
    cells = "".join(f'<th class="{kind}">{name}</th>' for kind, name in zip(kinds, head, strict=True))
    lines = "\n".join(
        "<tr>" + "".join(f'<td class="{k}">{cell}</td>' for k, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<h2>{title}</h2><table><tr>{cells}</tr>\n{lines}\n</table>\n"
