"""Profiles for speedscope; see https://www.speedscope.app/file-format-schema.json."""

from __future__ import annotations

import json
from typing import Any

from vmdebug.trace.profile.profile import Profile, ProfileSample

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"

_UNITS = {"ns": "nanoseconds"}
"""Units of vmdebug that speedscope has a name for."""


def render(profile: Profile) -> str:
    """Return a file with a profile for each thread, the heaviest first."""
    samples: dict[int, list[ProfileSample]] = {}
    for each in profile.samples:
        samples.setdefault(each.task, []).append(each)
    heaviest = sorted(samples, key=lambda task: -sum(each.weight for each in samples[task]))
    found = {
        "$schema": _SCHEMA,
        "exporter": "vmdebug",
        "name": profile.vm,
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": each.name, "file": each.where} for each in profile.frames]},
        "profiles": [_thread(profile, task, samples[task]) for task in heaviest],
    }
    return json.dumps(found, separators=(",", ":")) + "\n"


def _thread(profile: Profile, task: int, samples: list[ProfileSample]) -> dict[str, Any]:
    known = profile.tasks[task]
    return {
        "type": "sampled",
        "name": f"{known.comm} {known.tid}",
        "unit": _UNITS.get(profile.unit, "none"),
        "startValue": 0,
        "endValue": sum(each.weight for each in samples),
        "samples": [list(profile.stacks[each.stack]) for each in samples],
        "weights": [each.weight for each in samples],
    }
