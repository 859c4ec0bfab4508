"""Whether a function has made its frame before an instruction, in kernels with CONFIG_FRAME_POINTER.

Does not import GDB. In such kernels a function makes a frame before it calls another one, not always at its
first instruction.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Protocol


class State(enum.Enum):
    """What a function has done: nothing, saved its caller's frame pointer, or set its own."""

    NONE = enum.auto()
    SAVED = enum.auto()
    MADE = enum.auto()


class Facts(Protocol):
    """Facts about an architecture; see `Debug` of `vmdebug/arch.py`."""

    @property
    def frame_push(self) -> str: ...  # noqa: D102

    @property
    def frame_set(self) -> str: ...  # noqa: D102

    @property
    def frame_pops(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def calls(self) -> str: ...  # noqa: D102

    @property
    def returns(self) -> str: ...  # noqa: D102


def at_end(instructions: Iterable[tuple[str, str]], facts: Facts, *, begun: bool) -> State:
    """Return the state after the instructions of a function, from its first one on.

    Args:
        instructions: Their bytes in hexadecimal, and their words.
        facts: The architecture.
        begun: Whether the function has made its frame before them.
    """
    state = before = State.MADE if begun else State.NONE
    words = ""
    for code, words in instructions:
        if code == facts.frame_push:
            state = State.SAVED
        elif code == facts.frame_set:
            state = State.MADE
        elif code in facts.frame_pops:
            before, state = state, State.NONE
        elif re.match(facts.returns, words) or words.startswith("jmp"):
            # What follows was jumped to, from where the frame was there.
            state = max(state, before, key=list(State).index)
    return State.MADE if re.match(facts.calls, words) else state
