"""What GDB's refusals mean: the user's own words for what was wanted, GDB's, and what to do."""

from __future__ import annotations

import re

from vmdebug.errors import GdbError
from vmdebug.spelling import option

ABSENT = "is it inlined everywhere, or in a module? pending=True waits for it"
"""What to do where a breakpoint's place is not there."""

NOT_YET = "is it inlined everywhere, or in a module that is not loaded yet?"
"""Likewise, of what cannot wait for it."""

IN_SCOPE = "there are the place's arguments and locals, and what is global: see `info scope` in GDB"
"""What can be named in an expression that belongs to a place."""

HERE = "there is what the selected frame knows, what is global, and any address: *(int *)0x…"
"""What can be watched."""

_NO_HARDWARE = ("hardware breakpoint", "hardware watchpoint", "hw breakpoint")


def reworded(error: GdbError, what: str, hint: str = "") -> GdbError:
    """Return GDB's refusal with what was wanted instead of the MI command; another error as it is.

    Args:
        error: What the transport raised.
        what: What was wanted: "`nosuch` cannot be evaluated".
        hint: What to do about it.
    """
    if not error.words:
        return error  # GDB has ended, or wrote what isn't MI: that is the message
    return GdbError(f"{what}: {error.words}", command=error.command, words=error.words, hint=hint)


def planting(error: GdbError, what: str, *, when: str = "", absent: str = ABSENT) -> GdbError:
    """Return the refusal of a breakpoint, or of running the guest with those that there are.

    Args:
        error: What the transport raised.
        what: What was wanted: "a breakpoint at start_kernel".
        when: Its condition, and whatever else is evaluated there.
        absent: What to do about a name that GDB does not know, which is not the condition's.
    """
    words = error.words.lower()
    if any(each in words for each in _NO_HARDWARE):
        message = f"{what}: no hardware breakpoint or watchpoint is left"
        hint = (
            "KVM has 4 of them: delete one, take a software breakpoint, or start with"
            f" {option('accel', 'tcg')}"
        )
    elif "cannot insert breakpoint" in words and "cannot access memory" in words:
        message = f"{what}: the guest has nothing mapped yet where a breakpoint would be written"
        hint = "before the kernel has mapped itself KVM needs hardware=True; with TCG any will do"
    elif "not defined" in words or "no symbol" in words or "no source file" in words:
        unknown = re.search(r'No symbol "(\w+)"', error.words)
        named = unknown is not None and unknown[1] in re.findall(r"\w+", when)
        return reworded(error, what, IN_SCOPE if named else absent)
    else:
        return reworded(error, what)
    return GdbError(message, command=error.command, words=error.words, hint=hint, detail=error.words)
