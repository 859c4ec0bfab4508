"""What the adapter can do, in the protocol's words; see `Capabilities` in its specification."""

from __future__ import annotations

from typing import Any

_OURS: dict[str, Any] = {
    "supportsConfigurationDoneRequest": True,
    "supportsTerminateRequest": True,
    "supportTerminateDebuggee": True,
    "supportSuspendDebuggee": True,
    "supportsRestartRequest": True,
    "supportsCancelRequest": True,
    "exceptionBreakpointFilters": [
        {"filter": "panic", "label": "Kernel panic", "default": True},
        {"filter": "oops", "label": "Kernel oops", "default": False},
        {"filter": "warn", "label": "Kernel warning (WARN)", "default": False},
    ],
}
"""What does not depend on GDB."""

_OF_GDB = (
    "supportsFunctionBreakpoints",
    "supportsConditionalBreakpoints",
    "supportsHitConditionalBreakpoints",
    "supportsLogPoints",
    "supportsInstructionBreakpoints",
    "supportsEvaluateForHovers",
    "supportsSetVariable",
    "supportsSetExpression",
    "supportsSteppingGranularity",
    "supportsDelayedStackTraceLoading",
    "supportsValueFormattingOptions",
    "supportsLoadedSourcesRequest",
    "supportsModulesRequest",
    "supportsReadMemoryRequest",
    "supportsWriteMemoryRequest",
    "supportsDisassembleRequest",
    "supportsCompletionsRequest",
    "supportsBreakpointLocationsRequest",
)
"""What GDB 18 can do. GDB is started with the guest, after the client has asked for this."""

AT_FIRST: dict[str, Any] = _OURS | dict.fromkeys(_OF_GDB, True)


def changes(by_gdb: dict[str, Any], *, replays: bool) -> dict[str, Any]:
    """Return what is different from `AT_FIRST` in this session.

    Args:
        by_gdb: The capabilities of GDB's adapter.
        replays: Whether the guest can go back in time.
    """
    lacks = {name: False for name in _OF_GDB if not by_gdb.get(name)}
    return lacks | ({"supportsStepBack": True} if replays else {})
