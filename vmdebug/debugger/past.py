"""Going back in a replay; GDB does it, see `gdbinit/vmd_reverse.py` and `gdbinit/vmd_writes.py`."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.debugger import mi
from vmdebug.debugger.connection import Connection
from vmdebug.debugger.inspection import Inspection
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Backtrace, Stop
from vmdebug.debugger.stops import Stops
from vmdebug.errors import GdbError

BACK_SECONDS = 600.0
"""How long a search of the past may take."""


class _Found(msgspec.Struct, frozen=True):
    position: int
    pc: int
    function: str
    place: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Write:
    """A write that changed a value; the guest is before it.

    Args:
        position: Instructions executed before it.
        pc: Address of the instruction that writes.
        function: Its function; "" without symbols.
        place: Its source file and line, FILE:LINE; "" without symbols.
        old: The value before, as GDB prints it.
        new: The value after.
        backtrace: The frames there, the innermost first.
    """

    position: int
    pc: int
    function: str
    place: str
    old: str
    new: str
    backtrace: Backtrace


class Past:
    """The past of a replay.

    Args:
        connection: The connection to GDB.
        stops: Makes the stops.
        inspection: Reads backtraces.
    """

    def __init__(self, connection: Connection, stops: Stops, inspection: Inspection) -> None:
        self._connection = connection
        self._stops = stops
        self._inspection = inspection

    def go(self, kind: str, call: str, timeout: float) -> Stop:
        """Go back: "continue", "step", "next", "finish" or "stepi"."""
        found = self._execute(f"-vmd-back {kind}", call, timeout)
        reason, number = str(found["reason"]), str(found["number"])
        hit = {} if number == "0" else {"bkptno": number}
        frame = self._connection.fetch("-stack-info-frame")
        return self._stops.arrived({"reason": reason, "thread-id": "1", **hit, **frame})

    def goto(self, position: int, *, timeout: float = BACK_SECONDS) -> None:
        """Go to a count of executed instructions; breakpoints do not stop the guest on the way.

        Raises:
            StateError: the guest is not stopped.
            GdbError: the guest is no replay, or the recording has no such position.
            DeadlineError: it took too long.
        """
        self._execute(f"-vmd-goto {position}", "goto", timeout)

    def last_write(self, expression: str, *, timeout: float = BACK_SECONDS) -> Write | None:
        """Go back to before the last write that changed a value; return None, and stay, if there was none.

        The guest must be a replay of a recording. A write of the value that was there already is not found.

        Args:
            expression: What to look for, in the selected frame; it must be in memory.
            timeout: Seconds to search.

        Raises:
            StateError: the guest is not stopped.
            GdbError: the guest is no replay, or the expression is wrong or not in memory.
            DeadlineError: it was not found in time.
        """
        found = self._execute(f"-vmd-last-write {mi.quote(expression)}", "last_write", timeout)
        write = msgspec.json.decode(base64.b64decode(str(found["write"])), type=_Found | None)
        if write is None:
            return None
        frames = self._inspection.backtrace()
        return Write(**msgspec.structs.asdict(write), backtrace=frames)

    def _execute(self, command: str, call: str, timeout: float) -> dict[str, object]:
        self._connection.need(call, State.STOPPED)
        run, deadline = self._connection.run, Deadline.after(timeout)
        self._connection.execute(command, deadline)
        found: dict[str, object] = dict(self._connection.execute("-vmd-arrived", deadline).payload)
        self._connection.wait(lambda: run.state is not State.RUNNING, deadline, f"the stop of {call}")
        run.need(call, State.STOPPED)
        if run.unseen:
            run.take_stop()
        run.replaced()
        if "error" in found:
            words = base64.b64decode(str(found["error"])).decode()
            raise GdbError(f"{call}: {words}", words=words)
        return found
