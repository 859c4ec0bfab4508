"""The agent's program for a guest; hatch_build.py, which has only the standard library, imports it."""

from __future__ import annotations

from pathlib import Path

from vmdebug.compiler import GuestProgram

AGENT = GuestProgram(
    name="vmdebug-agent", what="the guest's agent", source=Path(__file__).with_name("agent.c")
)
