"""The functions whose share has changed between two profiles."""

from __future__ import annotations

from typing import NamedTuple

from vmdebug.trace.profile.profile import Profile, ProfileFrame


class Change(NamedTuple):
    """A function in two profiles.

    Args:
        frame: The function.
        before: Its own share in the first one, from 0 to 1.
        after: The same in the second one.
    """

    frame: ProfileFrame
    before: float
    after: float

    @property
    def change(self) -> float:
        """How much its share has grown."""
        return self.after - self.before


def changes(profile: Profile, before: Profile) -> list[Change]:
    """Return the functions of both profiles, those that have changed most first."""
    old, new = _shares(before), _shares(profile)
    found = [Change(frame, old.get(frame, 0.0), new.get(frame, 0.0)) for frame in {**old, **new}]
    return sorted(found, key=lambda each: (-abs(each.change), each.frame.name))


def _shares(profile: Profile) -> dict[ProfileFrame, float]:
    total = profile.total or 1
    return {frame: own / total for frame, own, _ in profile.functions()}
