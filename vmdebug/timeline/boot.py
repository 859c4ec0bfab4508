"""A boot: its initcalls, device probes, modules and units, as frozen values."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["initcall", "module", "probe", "wait", "unit"]

KINDS: tuple[Kind, ...] = ("initcall", "module", "probe", "wait", "unit")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a boot.

    Args:
        kind: An initcall, a module's init, the probe of a device, a wait for asynchronous calls, or a unit.
        name: The function, the device with its driver's result, or the unit.
        start: Seconds since the kernel's clock began.
        seconds: How long it took.
        owner: The module of an init, or the task of an initcall; "" if unknown.
        waited_for: What it waited for: of the units that it is ordered after, the one that was ready last.
        result: What it returned; 0 for success.
    """

    kind: Kind
    name: str
    start: float
    seconds: float
    owner: str = ""
    waited_for: str = ""
    result: int = 0

    @property
    def end(self) -> float:
        """When it ended, in seconds since the kernel's clock began."""
        return self.start + self.seconds


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """A boot.

    Args:
        name: The guest.
        kernel: Its kernel's release; "" if unknown.
        steps: Its parts, by start.
        marks: Moments, in seconds since the kernel's clock began, by name: when init began.
        notes: What is missing, and why.
    """

    name: str
    kernel: str
    steps: tuple[Step, ...]
    marks: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def end(self) -> float:
        """When its last part ended."""
        return max([*(step.end for step in self.steps), *self.marks.values()], default=0.0)


class Difference(msgspec.Struct, frozen=True):
    """A part of two boots.

    Args:
        kind: Its kind.
        name: Its name.
        before: Seconds that it took in the first boot; None if it was not in that.
        after: The same in the second one.
    """

    kind: Kind
    name: str
    before: float | None
    after: float | None

    @property
    def change(self) -> float:
        """How many seconds longer it took."""
        return (self.after or 0.0) - (self.before or 0.0)


def differences(before: Boot, after: Boot) -> list[Difference]:
    """Return the parts of two boots, those that have changed most first."""
    old, new = _seconds(before), _seconds(after)
    found = [
        Difference(kind, name, old.get((kind, name)), new.get((kind, name))) for kind, name in {**old, **new}
    ]
    return sorted(found, key=lambda each: (-abs(each.change), each.name))


def _seconds(boot: Boot) -> dict[tuple[Kind, str], float]:
    found: dict[tuple[Kind, str], float] = {}
    for step in boot.steps:
        found[step.kind, step.name] = found.get((step.kind, step.name), 0.0) + step.seconds
    return found
