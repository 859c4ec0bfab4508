"""Moves a replayed guest to a position: runs it there, by way of the nearest snapshot before.

A replay is stopped at an instruction count by QMP's `replay-break`. Snapshots are those of `snapshot`; their
tags are `iICOUNT.BYTES`, with the size of the console's log, which is cut to that size when one is loaded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, UsageError, VmError
from vmdebug.vm import snapshot

if TYPE_CHECKING:
    from vmdebug.vm.qmp import Qmp
    from vmdebug.vm.snapshot import Snapshot

_TAG = re.compile(r"i(\d+)\.(\d+)")

_KEEPS_CODE = (10, 2)
"""The first QEMU that keeps translated code when a stopped guest loads a snapshot."""

_FIRMWARE = 100
"""Instructions at the begin whose code never changes: it is in the firmware's ROM, or, where a recording
continues a guest, that of the agent and of the kernel."""

_PAUSE = 0.002
"""Seconds between two questions to a running replay. Each wakes QEMU's main thread, which would otherwise
sleep through the guest's idle time: it knows the time only from the log, and looks there when it wakes."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a replay.

    Args:
        icount: Its position.
        console: The size of the console's log there.
        bytes: Its size.
        tag: Its tag.
    """

    icount: int
    console: int
    bytes: int
    tag: str


def _mark(found: Snapshot) -> Mark | None:
    parts = _TAG.fullmatch(found.tag)
    if parts is None:
        return None
    return Mark(icount=int(parts[1]), console=int(parts[2]), bytes=found.bytes, tag=found.tag)


class Player:
    """A replay, under a QMP connection that has the deadline.

    Args:
        qmp: The connection.
        console: The log of its console, which ends where the guest is.
        recorded: What was on the console when it was recorded.
        name: The VM's name, for messages.
        begin: The first position.
        end: The last one.
    """

    def __init__(
        self,
        qmp: Qmp,
        console: Path,
        recorded: bytes,
        *,
        name: str,
        begin: int = 0,
        end: int,
        deadline: Deadline,
    ) -> None:
        self._qmp = qmp
        self._console = console
        self._recorded = recorded
        self._name = name
        self._begin = begin
        self._end = end
        self._deadline = deadline

    @property
    def icount(self) -> int:
        """The instruction count."""
        found: int = self._qmp.execute("query-replay")["icount"]
        return found

    def ask(self, command: str, /, **arguments: object) -> Any:
        """Execute a QMP command, as `Vm.qmp` does.

        Raises:
            QmpError: QEMU refused it.
        """
        return self._qmp.execute(command, arguments or None)

    def save(self) -> None:
        """Take a snapshot here, unless there is one.

        Raises:
            VmError: QEMU cannot save the guest, as on a full disk.
        """
        here = self.icount
        if all(each.icount != here for each in self.marks()):
            tag = f"i{here:016}.{self._console.stat().st_size}"
            snapshot.save(self._qmp, tag, vm=self._name)

    def marks(self) -> tuple[Mark, ...]:
        """Return where there are snapshots, in order."""
        found = (_mark(each) for each in snapshot.every(self._qmp))
        return tuple(sorted((each for each in found if each is not None), key=lambda each: each.icount))

    def goto(self, icount: int) -> None:
        """Go to a position: load the nearest snapshot before it, unless the guest is nearer, and run.

        Raises:
            UsageError: it is after the end, or before the begin.
            GuestDiedError: QEMU has ended.
            DeadlineError: the guest did not get there in time.
        """
        if not self._begin <= icount <= self._end:
            raise UsageError(
                f"the recording has no position {icount}",
                hint=f"its positions are {self._begin} to {self._end}",
            )
        now = self.icount
        before = [each for each in self.marks() if each.icount <= icount]
        if icount < now or (before and before[-1].icount > now):
            if not before:
                raise VmError(f"{self._name} has no snapshot before {icount}", hint="replay it again")
            self._discard_code(before[0])
            self._load(before[-1])
        self.run_to(icount)
        if icount < self._end:
            # Whoever sets the guest running, QEMU would end at the end of its log.
            self._qmp.execute("replay-break", {"icount": self._end})

    def goto_output(self, size: int, candidates: Sequence[int]) -> int:
        """Go to the first of several positions at which the console has a size, and return it.

        Args:
            size: Bytes of the console's log; they have been written at the last candidate.
            candidates: Positions, in order, at each of which the guest wrote a byte.
        """
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            self.goto(min(candidates[middle], self._end))
            if self._console.stat().st_size >= size:
                high = middle
            else:
                low = middle + 1
        self.goto(min(candidates[low], self._end))
        return candidates[low]

    def run_to(self, icount: int, each: Callable[[int], None] = lambda _: None) -> None:
        """Run the guest to a position after the present one.

        Args:
            icount: The position.
            each: Called with the present position now and then.

        Raises:
            GuestDiedError: QEMU has ended.
            DeadlineError: the guest did not get there in time.
        """
        if self.icount == icount:
            return
        self._qmp.execute("replay-break", {"icount": icount})
        self._qmp.execute("cont")
        while True:
            now, status = self._qmp.execute_all([("query-replay", {}), ("query-status", {})])
            if not status["running"]:
                break
            each(now["icount"])
            self._deadline.left(f"the replay to get to {icount}")
            time.sleep(_PAUSE)
        if self.icount != icount:
            raise GuestDiedError(
                f"the replay of {self._name} stopped at {self.icount}, and not at {icount}",
                hint="is the recording intact? `vmdebug recording verify` compares its files",
            )

    def _discard_code(self, first: Mark) -> None:
        """Make QEMU discard its translated code, which it keeps when a stopped guest loads a snapshot.

        It does so when a running guest stops in order to load one (`tcg_vm_change_state` in
        accel/tcg/tcg-all.c). So the guest runs a little, and is sent to the first position while it runs.
        """
        if self._version < _KEEPS_CODE:
            return
        self._load(first)
        self.run_to(first.icount + _FIRMWARE)
        self._qmp.execute_all([("cont", {}), ("replay-seek", {"icount": first.icount})])
        while self._qmp.execute("query-status")["running"]:
            time.sleep(_PAUSE)

    @property
    def _version(self) -> tuple[int, int]:
        found = self._qmp.execute("query-version")["qemu"]
        return found["major"], found["minor"]

    def _load(self, mark: Mark) -> None:
        snapshot.load_unmarked(self._qmp, mark.tag, vm=self._name)
        # A later snapshot may have been loaded: the log then lacks what came in between.
        with self._console.open("r+b", buffering=0) as log:
            log.write(self._recorded[: mark.console])
            log.truncate(mark.console)
