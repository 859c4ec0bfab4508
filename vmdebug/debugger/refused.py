"""What GDB's refusals mean: the user's own words for what was wanted, GDB's, and what to do."""

from __future__ import annotations

from vmdebug.errors import GdbError

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


def planting(error: GdbError, what: str) -> GdbError:
    """Return the refusal of a breakpoint, or of running the guest with those that there are.

    Args:
        error: What the transport raised.
        what: What was wanted: "a breakpoint at start_kernel".
    """
    words = error.words.lower()
    if any(each in words for each in _NO_HARDWARE):
        message = f"{what}: no hardware breakpoint or watchpoint is left"
        hint = "KVM has 4 of them: delete one, take a software breakpoint, or start with --accel tcg"
    elif "cannot insert breakpoint" in words and "cannot access memory" in words:
        message = f"{what}: the guest has nothing mapped yet where a breakpoint would be written"
        hint = "before the kernel has mapped itself KVM needs hardware=True; with TCG any will do"
    elif "not defined" in words or "no symbol" in words or "no source file" in words:
        return reworded(error, what, "is it inlined everywhere, or in a module? pending=True waits for it")
    else:
        return reworded(error, what)
    return GdbError(message, command=error.command, words=error.words, hint=hint, detail=error.words)
