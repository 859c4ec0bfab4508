"""Flame graphs as SVG: one file with its style and script, which also works without the script.

Horizontal places are percentages, so that the graph fits the window; text keeps its size.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from vmdebug.trace.profile.formats.amounts import percent, shown
from vmdebug.trace.profile.formats.tree import Node, Placed, placed, tree
from vmdebug.trace.profile.profile import Profile

_HERE = Path(__file__).parent
STYLE = (_HERE / "flame.css").read_text()
SCRIPT = (_HERE / "flame.js").read_text()

_ROW = 18
_TOP = 26
_LEAST = 0.0003
"""The least share of the whole of a function that is drawn: a third of a pixel on a wide screen."""

_HUES = {"kernel": (20, 45), "module": (95, 130), "user": (195, 225)}
"""The range of hues of the functions of each kind: orange, green, blue."""

_STRONG = 0.05
"""The change, as a share of the whole, from which a function has the strongest colour."""


def render(profile: Profile, before: Profile | None = None) -> str:
    """Return a flame graph as an SVG file.

    Args:
        profile: The profile.
        before: A profile to compare it with; what has grown since is red, and what has shrunk is blue.
    """
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{graph(profile, before)}\n'


def graph(profile: Profile, before: Profile | None = None) -> str:
    """Return the element `svg` of a flame graph, for a file or a page; see `render`."""
    nodes = list(placed(tree(profile, before), _LEAST))
    levels = 1 + max(each.level for each in nodes)
    height = _TOP + levels * _ROW + 4
    frames = "\n".join(_frame(each, profile, levels, compared=before is not None) for each in nodes)
    return f"""\
<svg class="flame" xmlns="http://www.w3.org/2000/svg" width="100%" height="{height}">
<style>{STYLE}</style>
<text class="info" x="4" y="16">{escape(heading(profile, before))}</text>
<text x="99.7%" y="16" text-anchor="end"><tspan class="back" style="display:none">Zoom out</tspan>\
<tspan dx="12" class="search">Search</tspan></text>
{frames}
<script><![CDATA[
{SCRIPT}]]></script>
</svg>"""


def heading(profile: Profile, before: Profile | None = None) -> str:
    """Return what a graph shows, on one line."""
    if before is not None:
        return f"{profile.vm} compared with {before.vm}: red has grown, blue has shrunk"
    return f"{profile.vm}: {len(profile)} samples, {shown(profile.total, profile.unit)}"


def _frame(place: Placed, profile: Profile, levels: int, *, compared: bool) -> str:
    node, y = place.node, _TOP + (levels - 1 - place.level) * _ROW
    start, width = 100 * place.start, 100 * (place.end - place.start)
    name = node.frame.name
    return (
        f'<svg class="frame" x="{start:.4f}%" y="{y}" width="{width:.4f}%" height="{_ROW}"'
        f' data-start="{place.start:.7f}" data-end="{place.end:.7f}" data-level="{place.level}"'
        f" data-name={quoteattr(name)}><title>{escape(_title(node, profile, compared=compared))}</title>"
        f'<rect width="100%" height="{_ROW - 1}" fill="{_colour(node, profile.total, compared=compared)}"/>'
        f'<text x="3" y="13">{escape(name)}</text></svg>'
    )


def _title(node: Node, profile: Profile, *, compared: bool) -> str:
    where = f" ({node.frame.where})" if node.frame.where else ""
    amount = f"{percent(node.weight, profile.total)}, {shown(node.weight, profile.unit)}"
    change = ""
    if compared:
        points = 100 * (node.weight - node.before) / (profile.total or 1)
        change = f"; {points:+.1f} points, before {percent(node.before, profile.total)}"
    return f"{node.frame.name}{where}: {amount}{change}"


def _colour(node: Node, total: int, *, compared: bool) -> str:
    if compared:
        change = (node.weight - node.before) / (total or 1) / _STRONG
        lightness = 96 - 36 * min(abs(change), 1)
        return f"hsl({0 if change > 0 else 215},75%,{lightness:.0f}%)"
    low, high = _HUES[node.frame.kind]
    seed = zlib.crc32(node.frame.name.encode())
    return f"hsl({low + seed % (high - low)},{72 + (seed >> 8) % 18}%,{64 + (seed >> 16) % 10}%)"
