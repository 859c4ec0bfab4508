"""The reader of traces in a guest; hatch_build.py imports it, with only the standard library."""

from __future__ import annotations

from pathlib import Path

from vmdebug.compiler import GuestProgram

FRAMES = Path(__file__).with_name("frames.h")
"""What it shares with the sampler of profiles."""

READER = GuestProgram(
    name="vmdebug-trace-reader",
    what="the reader of the guest's traces",
    source=Path(__file__).with_name("reader.c"),
    parts=(FRAMES,),
)
