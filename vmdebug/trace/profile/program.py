"""The sampler of profiles in a guest; hatch_build.py imports it, with only the standard library."""

from __future__ import annotations

from pathlib import Path

from vmdebug.compiler import GuestProgram
from vmdebug.trace.guest.program import FRAMES

SAMPLER = GuestProgram(
    name="vmdebug-sampler",
    what="the guest's sampler of profiles",
    source=Path(__file__).with_name("sampler.c"),
    parts=(FRAMES,),
)
