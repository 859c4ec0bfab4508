"""Debugging sessions: a VM with its console and its GDB; a session controls when the guest runs."""

from __future__ import annotations

from vmdebug.session.debug_session import DebugSession
from vmdebug.session.opening import attach, replay, start

__all__ = ["DebugSession", "attach", "replay", "start"]
