"""Converts GDB's refusals into errors with what the user wanted, GDB's message, and a hint."""

from __future__ import annotations

import re

from vmdebug.errors import GdbError
from vmdebug.spelling import option

UNKNOWN_PLACE = "it may be inlined everywhere, or be in a module: pending=True waits for the module"
"""The hint for a breakpoint at a place that GDB does not know."""

UNKNOWN_PLACE_NOW = "it may be inlined everywhere, or be in a module that is not loaded yet"
"""The same for what cannot be pending."""

IN_SCOPE = "it can use the arguments and local variables of the place, and globals: see `info scope` in GDB"
"""The hint for an expression that is evaluated at a place."""

WATCHABLE = "it can use the variables of the selected frame, globals, and any address: *(int *)0x…"
"""The hint for a watched expression."""

_NO_HARDWARE = ("hardware breakpoint", "hardware watchpoint", "hw breakpoint")


def renamed(error: GdbError, what: str, hint: str = "") -> GdbError:
    """Return GDB's refusal with what the user wanted in place of the MI command; any other error unchanged.

    Args:
        error: The error of the transport.
        what: What the user wanted: "`nosuch` cannot be evaluated".
        hint: What to do about it.
    """
    if not error.words:
        return error  # GDB has ended, or wrote a line that is not MI: the message says so
    # vmdebug's part in GDB puts what to do on a line of its own.
    words, _, remedy = error.words.partition("\n")
    return GdbError(f"{what}: {words}", command=error.command, words=error.words, hint=remedy or hint)


def breakpoint_error(error: GdbError, what: str, *, when: str = "", unknown: str = UNKNOWN_PLACE) -> GdbError:
    """Return the error for a breakpoint that GDB refused to set, or to insert when the guest should run.

    Args:
        error: The error of the transport.
        what: What the user wanted: "a breakpoint at start_kernel".
        when: The condition, and all else that is evaluated at the breakpoint.
        unknown: The hint for a name that GDB does not know and that is not in `when`.
    """
    words = error.words.lower()
    if any(each in words for each in _NO_HARDWARE):
        message = f"{what}: no hardware breakpoint or watchpoint is left"
        hint = (
            "KVM has only the CPU's debug registers: delete one, use software breakpoints, or start the guest"
            f" with {option('accel', 'tcg')}"
        )
    elif "cannot insert breakpoint" in words and "cannot access memory" in words:
        message = f"{what}: the guest has not mapped the memory yet that a breakpoint is written to"
        hint = "under KVM use hardware=True until the kernel has mapped itself; TCG needs no such thing"
    elif "no symbol table is loaded" in words:
        from vmdebug import kimage  # noqa: PLC0415 - rarely needed, and slow to import

        return renamed(error, what, kimage.WITHOUT_DWARF)
    elif "not defined" in words or "no symbol" in words or "no source file" in words:
        symbol = re.search(r'No symbol "(\w+)"', error.words)
        named = symbol is not None and symbol[1] in re.findall(r"\w+", when)
        return renamed(error, what, IN_SCOPE if named else unknown)
    else:
        return renamed(error, what)
    return GdbError(message, command=error.command, words=error.words, hint=hint, detail=error.words)
