"""Reads the times of systemd's units from `systemctl show`; see org.freedesktop.systemd1(5)."""

from __future__ import annotations

from collections.abc import Mapping

from vmdebug.timeline.boot import Step

COMMAND = (
    "command -v systemctl >/dev/null && [ -d /run/systemd/system ] || exit 0;"
    " systemctl is-system-running --wait >/dev/null 2>&1;"
    " systemctl show '*' -p Id,InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic,After"
)
"""Prints a paragraph for each unit, once the boot has finished; nothing where systemd does not run."""

_BEGAN, _READY = "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"


def parse(text: str) -> list[Step]:
    """Return the units that have become active, each from its start until it was ready.

    Args:
        text: What `COMMAND` prints: NAME=VALUE, with monotonic times in microseconds, 0 for never.
    """
    units = [_fields(part) for part in text.split("\n\n") if part.strip()]
    ready = {unit["Id"]: _us(unit, _READY) for unit in units if "Id" in unit}
    steps = []
    for unit in units:
        began, until = _us(unit, _BEGAN), _us(unit, _READY)
        if "Id" not in unit or not began or until < began:
            continue
        after = [each for each in unit.get("After", "").split() if 0 < ready.get(each, 0) <= began]
        last = max(after, key=lambda each: ready[each], default="")
        steps.append(
            Step(
                kind="unit",
                name=unit["Id"],
                start=began / 1e6,
                seconds=(until - began) / 1e6,
                waited_for=last,
            )
        )
    return sorted(steps, key=lambda each: each.start)


def _fields(paragraph: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in paragraph.splitlines() if "=" in line)


def _us(unit: Mapping[str, str], name: str) -> int:
    value = unit.get(name, "0")
    return int(value) if value.isdigit() else 0
