"""Steps that follow their task from CPU to CPU.

GDB's own `next` and `finish` never return if the task sleeps meanwhile and wakes on another CPU; see
`gdbinit/vmd_follow.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from vmdebug.debugger import stop


class Following:
    """The step that is being followed, if there is one.

    Args:
        fetch: Executes an MI command, and returns the values in its result.
    """

    def __init__(self, fetch: Callable[[str], Mapping[str, Any]]) -> None:
        self._fetch = fetch
        self._how = ""

    def begin(self, how: Literal["finish", "next"]) -> bool:
        """Prepare to follow the next step; return whether its task can be followed."""
        followed = bool(self._fetch(f"-vmd-follow {how}")["followed"] == "1")
        self._how = how if followed else ""
        return followed

    def ended(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of a stop, changed to those of a finished step if it ends the followed step.

        Any stop ends the following.
        """
        how, self._how = self._how, ""
        if not how:
            return payload
        answer = self._fetch("-vmd-end-follow")
        if answer["stopped"] != "1" or (stop.hit(payload) or 0) > 0:
            return payload
        changed = {"reason": stop.FINISHED if how == "finish" else stop.FOLLOWED}
        if "value" in answer:
            changed |= {"gdb-result-var": answer["number"], "return-value": answer["value"]}
        return {key: value for key, value in payload.items() if key not in ("bkptno", "disp")} | changed
