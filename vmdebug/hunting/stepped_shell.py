"""Runs commands in a guest that only runs while one of them does.

The agent's mailbox is memory at a fixed address; see `agent.c`. A command is written there while the guest is
stopped, and the agent stops the guest when the command has ended. So what the host sends arrives at the same
instruction in each run, however long the host takes. `vmdebug.hunting.mailbox` has its layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmdebug.channel import shell
from vmdebug.channel.agent.frames import FLAG, Decoder, Frame
from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.shell import Output, Streams
from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, VmError
from vmdebug.hunting import schedule as schedules
from vmdebug.hunting.mailbox import LONGEST, Mailbox
from vmdebug.hunting.schedule import Schedule
from vmdebug.hunting.stub import LOOK_SECONDS, Stub

_PIECE = 1 << 12
_VERSION = 1


class SteppedShell:
    """The shell of a stopped guest; see `vmdebug.channel.shell.Shell`.

    Args:
        stub: The connection to its gdbstub; the agent's write stops the guest.
        mailbox: The agent's mailbox.
        schedule: The schedule.
        cause: Returns how the guest died; "" while it lives.
    """

    largest: int | None = None

    def __init__(self, stub: Stub, mailbox: Mailbox, schedule: Schedule, *, cause: Callable[[], str]) -> None:
        self.stub = stub
        self.mailbox = mailbox
        self.schedule = schedule
        self.cause = cause
        self._commands = 0

    def begin(self, line: bytes, streams: Streams, *, deadline: Deadline) -> SteppedRunning:
        """Prepare a command; it runs while `result` waits for it."""
        self._commands += 1
        stdin = shell.all_input(streams, deadline)
        frames = [Frame(b"H", 0, bytes([_VERSION]) + schedules.nonce(self.schedule, self._commands))]
        kinds: list[tuple[bytes, bytes]] = []
        if disturbance := schedules.disturbance(self.schedule, self._commands):
            kinds.append((b"J", disturbance))
        kinds.append((b"X", bytes([stdin is not None]) + line))
        if stdin is not None:
            kinds += [(b"I", stdin[at : at + _PIECE]) for at in range(0, len(stdin), _PIECE)]
            kinds.append((b"E", b""))
        frames += [Frame(kind, number, data) for number, (kind, data) in enumerate(kinds, 1)]
        data = FLAG + b"".join(frame.encode() for frame in frames)
        return SteppedRunning(self, shell.shown(line), data, streams)

    def wait_stop(self, deadline: Deadline, wanted: str) -> None:
        """Set the guest running until the agent stops it.

        Raises:
            GuestDiedError: it died.
            DeadlineError: it did not stop.
        """
        self.stub.resume()
        while (stop := self.stub.stopped(min(LOOK_SECONDS, deadline.remaining))) is None:
            if cause := self.cause():
                raise GuestDiedError(f"the guest died while vmdebug waited for {wanted}: {cause}")
            if deadline.passed:
                raise deadline.error(wanted)
        if "watch:" not in stop:
            cause = self.cause() or f"it stopped ({stop})"
            raise GuestDiedError(f"the guest died while vmdebug waited for {wanted}: {cause}")


class SteppedRunning:
    """A command; see `vmdebug.channel.shell.Running`.

    Args:
        owner: The shell.
        shown: The command, for errors.
        data: What to send.
        streams: Its streams.
    """

    def __init__(self, owner: SteppedShell, shown: str, data: bytes, streams: Streams) -> None:
        self._owner = owner
        self._shown = shown
        self._data = data
        self._decoder = Decoder()
        self._stdout, self._stderr = bytearray(), bytearray()
        self._sinks = {
            b"O": streams.stdout or self._stdout.extend,
            b"R": streams.stderr or self._stderr.extend,
        }
        self._status: int | None = None

    def result(self, deadline: Deadline) -> Output:
        """Run the guest until the command has ended."""
        mailbox, wanted = self._owner.mailbox, f"{self._shown} to end in the guest"
        while self._status is None:
            if self._data:
                piece, self._data = self._data[:LONGEST], self._data[LONGEST:]
                mailbox.give(piece, deadline=deadline)
            self._owner.wait_stop(deadline, wanted)
            for frame in self._decoder.feed(mailbox.output(deadline=deadline)):
                self._handle(frame)
        return Output(bytes(self._stdout), bytes(self._stderr), self._status)

    def wait(self, seconds: float) -> bool:  # noqa: ARG002 - the guest runs only while `result` waits
        """Return True at once."""
        return True

    def cancel(self) -> None:
        """Forget the command: the guest does not run."""

    def settle(self) -> bool:
        """Return that nothing is left to do."""
        return True

    def _handle(self, frame: Frame) -> None:
        match frame.kind:
            case b"O" | b"R":
                self._sinks[frame.kind](frame.payload)
            case b"S":
                self._status = frame.payload[0]
            case b"F":
                why = frame.payload.decode(errors="replace")
                raise VmError(f"{self._shown} cannot be started in the guest: {why}")
            case b"N":
                raise VmError(f"the result of {self._shown} is lost: the guest's agent was restarted")


class SteppedGuestShell(GuestShell):
    """The `Vm.shell` of a guest that is hunted.

    Args:
        stepped: The shell.
        **keywords: As for `GuestShell`.
    """

    def __init__(self, stepped: SteppedShell, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._stepped = stepped

    def wait(self, deadline: Deadline) -> SteppedShell:  # noqa: ARG002 - it waits at once
        """Return the shell: the guest has stopped at it."""
        return self._stepped
