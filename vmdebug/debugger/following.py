"""Steps that follow their task from CPU to CPU.

GDB's own `next` and `finish` wait for ever if the task sleeps on the way and wakes on another CPU; see
`gdbinit/vmd_follow.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from vmdebug.debugger import stop


class Following:
    """The step that is followed now, if one is.

    Args:
        fetch: Executes an MI command, and returns the values in its result.
    """

    def __init__(self, fetch: Callable[[str], Mapping[str, Any]]) -> None:
        self._fetch = fetch
        self._how = ""

    def begin(self, how: Literal["finish", "next"]) -> bool:
        """Prepare to follow the step that comes next; return whether its task can be followed."""
        planted = bool(self._fetch(f"-vmd-follow {how}")["planted"] == "1")
        self._how = how if planted else ""
        return planted

    def ended(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of a stop; if it ends the followed step, as MI would have reported that.

        Any other stop ends the following too.
        """
        how, self._how = self._how, ""
        if not how:
            return payload
        answer = self._fetch("-vmd-followed")
        if answer["came"] != "1" or (stop.hit(payload) or 0) > 0:
            return payload
        told = {"reason": stop.FINISHED if how == "finish" else stop.FOLLOWED}
        if "value" in answer:
            told |= {"gdb-result-var": answer["number"], "return-value": answer["value"]}
        return {key: value for key, value in payload.items() if key not in ("bkptno", "disp")} | told
