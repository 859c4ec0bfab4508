"""Finds the test point that ran when the kernel printed a splat."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from vmdebug.channel.log.trouble import Trouble
from vmdebug.ktests.results import KernelTestPoint

_OWN = "kunit"
"""The kind of trouble that says that a test has failed, which its point says itself."""

_ROUNDING = 1e-6
"""Seconds: the resolution of the time stamps in the kernel's log."""


def attributed(
    points: tuple[KernelTestPoint, ...], troubles: Iterable[Trouble], *, all_ours: bool
) -> tuple[KernelTestPoint, ...]:
    """Return suites with the splats of their tests, by the time stamps in the kernel's log.

    Args:
        points: The suites.
        troubles: The splats.
        all_ours: Whether the last suite has those that belong to no point; otherwise they are dropped.
    """
    for trouble in troubles:
        if trouble.kind == _OWN:
            continue
        changed = _with(points, trouble)
        if changed == points and all_ours and points:
            *before, last = points
            changed = (*before, _added(last, trouble))
        points = changed
    return points


def _with(
    points: tuple[KernelTestPoint, ...], trouble: Trouble, before: float | None = None
) -> tuple[KernelTestPoint, ...]:
    """Return points with a splat at the deepest one that ran then; the same points if none did.

    Args:
        points: The points.
        trouble: The splat.
        before: When the point before them ended; None if that is unknown.
    """
    when = float(trouble.time) if trouble.time else None
    for at, point in enumerate(points):
        if when is None or not _ran(point, when, before):
            before = point.ended or before
            continue
        inner = _with(point.points, trouble, before)
        found = (
            _added(point, trouble) if inner == point.points else msgspec.structs.replace(point, points=inner)
        )
        return (*points[:at], found, *points[at + 1 :])
    return points


def _ran(point: KernelTestPoint, when: float, before: float | None) -> bool:
    """Whether a point ran at a time; one without a result ran from its beginning on."""
    began = _began(point)
    if point.status == "missing":
        start = before if began is None else began
        return start is None or start - _ROUNDING <= when
    return point.ended is not None and began is not None and _between(began, when, point.ended)


def _began(point: KernelTestPoint) -> float | None:
    if point.ended is not None and point.duration is not None:
        return point.ended - point.duration
    return _began(point.points[0]) if point.points else None


def _between(began: float, when: float, ended: float) -> bool:
    return began - _ROUNDING <= when <= ended + _ROUNDING


def _added(point: KernelTestPoint, trouble: Trouble) -> KernelTestPoint:
    return msgspec.structs.replace(point, troubles=(*point.troubles, trouble))
