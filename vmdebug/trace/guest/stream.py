"""A connection to the reader in the guest: its commands, their answers, and the pages that it sends."""

from __future__ import annotations

import math
import os
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, VmdebugError, VmError

_HEAD = struct.Struct("<IHH")
_TIME = struct.Struct("<Q")

_ANSWER, _FAILURE, _PAGE, _NAMES, _ACTIVITY, _TIME_REACHED = map(ord, "REDNST")

END_SECONDS = 90.0
"""How long the reader may take to remove its events: each waits for the RCU readers of all CPUs."""


ABANDON_SECONDS = 10.0
"""How long it may take to disconnect from a guest that does not answer."""


class Running(Protocol):
    """A command in the guest that runs; see `vmdebug.channel.shell.Job`."""

    def result_by(self, deadline: Deadline) -> object:
        """Wait for its end."""


Begin = Callable[[int, Callable[[bytes], object]], Running]
"""Starts the reader in the guest, with a descriptor as its standard input and a sink of its output."""


class _Until(Deadline):
    """A deadline that passes once an event is set."""

    def __init__(self, over: threading.Event) -> None:
        super().__init__(math.inf, math.inf)
        object.__setattr__(self, "_over", over)

    @property
    def passed(self) -> bool:
        """Whether the event is set."""
        return bool(object.__getattribute__(self, "_over").is_set())


class CommandError(VmError):
    """tracefs, or what else carries out commands, refused one.

    Args:
        command: The command.
        number: The error's number in the guest.
        log: The end of tracefs' error_log.
        service: What refused it.
    """

    def __init__(self, command: str, number: int, log: str, service: str = "the guest's tracefs") -> None:
        super().__init__(f"{service} refused `{command}`: {os.strerror(number)}", detail=log)
        self.number = number


class Received:
    """What has come since the last call.

    Args:
        pages: The CPU and the bytes of each page, in the order of each CPU.
        names: The same of the names of tasks; all that are older than `complete`.
        activity: The same of what the scheduler and the interrupts do.
        complete: The time up to which the pages are complete, in nanoseconds of the guest's monotonic clock.
    """

    def __init__(self, complete: int = 0) -> None:
        self.pages: list[tuple[int, bytes]] = []
        self.names: list[tuple[int, bytes]] = []
        self.activity: list[tuple[int, bytes]] = []
        self.complete = complete

    def add(self, more: Received) -> None:
        """Add what came later."""
        self.pages += more.pages
        self.names += more.names
        self.activity += more.activity
        self.complete = more.complete


class Reader:
    """The reader in a guest, until `finish` or `abandon`.

    A thread receives what it sends, so the guest does not have to wait for the caller.

    Args:
        begin: Starts it.
        service: What carries out its commands, for errors.

    Raises:
        VmdebugError: the guest cannot start it.
    """

    def __init__(self, begin: Begin, *, service: str = "the guest's tracefs") -> None:
        self._service = service
        self._condition = threading.Condition()
        self._received = Received()
        self._incomplete = Received()
        self._answers: list[tuple[int, bytes]] = []
        self._pieces = bytearray()
        self._failure: VmdebugError | None = None
        self._ended = False
        self._over = threading.Event()
        theirs, self._input = os.pipe()
        try:
            self._running = begin(theirs, self._feed)
        except BaseException:
            os.close(theirs)
            os.close(self._input)
            raise
        self._theirs = theirs
        self._thread = threading.Thread(target=self._run, name="guest's trace", daemon=True)
        self._thread.start()

    @property
    def gone(self) -> bool:
        """Whether the guest has died."""
        with self._condition:
            return isinstance(self._failure, GuestDiedError)

    def ask(self, *commands: str, deadline: Deadline) -> list[bytes]:
        """Send commands, and return their answers.

        Raises:
            CommandError: tracefs refused one; the others are carried out, too.
            DeadlineError: the answers did not come.
            VmdebugError: the reader has ended.
        """
        found = self.answers(*commands, deadline=deadline)
        for each in found:
            if isinstance(each, CommandError):
                raise each
        return [each for each in found if isinstance(each, bytes)]

    def answers(self, *commands: str, deadline: Deadline) -> list[bytes | CommandError]:
        """Send commands, and return their answers; an error for a command that tracefs refused.

        Raises:
            DeadlineError: the answers did not come.
            VmdebugError: the reader has ended.
        """
        self.send(*commands)
        answers = self._await(len(commands), deadline)
        return [_answer(*each, self._service) for each in zip(commands, answers, strict=True)]

    def greet(self, deadline: Deadline) -> tuple[int, ...]:
        """Wait until the reader has opened tracefs, and return the pids of itself and the agent.

        Raises:
            CommandError: the guest has none.
            VmdebugError: see `ask`.
        """
        (answer,) = self._await(1, deadline)
        found = _answer("begin", answer, self._service)
        if isinstance(found, CommandError):
            raise found
        return tuple(map(int, found.split()))

    def send(self, *commands: str) -> None:
        """Send commands without waiting for answers."""
        data = "".join(f"{each}\n" for each in commands).encode()
        while data and self._input >= 0:
            try:
                data = data[os.write(self._input, data) :]
            except BrokenPipeError:
                return  # the failure is known, or will be

    def take(self, *, last: bool = False) -> Received:
        """Return what has come since the last call.

        Args:
            last: Whether no more will come; otherwise, pages are left whose time has not been reached.

        Raises:
            VmdebugError: the reader has ended, and the guest has not died.
        """
        with self._condition:
            found, self._received = self._received, Received(self._received.complete)
            if last:
                self._incomplete.complete = found.complete
                found.add(self._incomplete)
                self._incomplete = Received()
            if self._failure is not None and not isinstance(self._failure, GuestDiedError):
                raise self._failure
            return found

    def finish(self, seconds: float = END_SECONDS) -> None:
        """End the reader, and wait until it has removed what it made.

        Raises:
            DeadlineError: it did not end.
            VmdebugError: it failed; not if the guest has died.
        """
        self._close_input()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.abandon()
            raise DeadlineError(
                f"waited {seconds:g} s for the guest to remove its events",
                hint="the guest removes them once it has time",
            )
        if self._failure is not None and not isinstance(self._failure, GuestDiedError):
            raise self._failure

    def abandon(self) -> None:
        """Disconnect from a guest that does not answer: it removes what it made once it runs again."""
        self._close_input()
        self._over.set()
        self._thread.join(ABANDON_SECONDS)

    def _close_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def _await(self, count: int, deadline: Deadline) -> list[tuple[int, bytes]]:
        with self._condition:
            while len(self._answers) < count:
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    raise VmError("the reader in the guest has ended before its answer")
                if not self._condition.wait(deadline.left(f"{self._service} to answer")):
                    raise deadline.error(f"{self._service} to answer")
            found, self._answers = self._answers[:count], self._answers[count:]
            return found

    def _run(self) -> None:
        """Wait for the reader's end, as long as that takes."""
        try:
            self._running.result_by(_Until(self._over))
        except VmdebugError as error:
            # Nobody waits for a guest that was abandoned.
            self._failure = None if self._over.is_set() else error
        finally:
            with self._condition:
                self._ended = True
                self._condition.notify_all()
            os.close(self._theirs)

    def _feed(self, data: bytes) -> None:
        """Take the frames that `data` completes."""
        pieces, at = self._pieces, 0
        pieces += data
        with self._condition:
            while len(pieces) - at >= _HEAD.size:
                size, kind, cpu = _HEAD.unpack_from(pieces, at)
                if len(pieces) - at < _HEAD.size + size:
                    break
                body = bytes(pieces[at + _HEAD.size : at + _HEAD.size + size])
                at += _HEAD.size + size
                if kind == _PAGE:
                    self._incomplete.pages.append((cpu, body))
                elif kind == _NAMES:
                    self._incomplete.names.append((cpu, body))
                elif kind == _ACTIVITY:
                    self._incomplete.activity.append((cpu, body))
                elif kind == _TIME_REACHED:
                    (self._incomplete.complete,) = _TIME.unpack(body)
                    self._received.add(self._incomplete)
                    self._incomplete = Received()
                elif kind in (_ANSWER, _FAILURE):
                    self._answers.append((kind, body))
                    self._condition.notify_all()
        del pieces[:at]


def _answer(command: str, answer: tuple[int, bytes], service: str) -> bytes | CommandError:
    kind, body = answer
    if kind == _ANSWER:
        return body
    number, _, log = body.decode(errors="replace").partition(" ")
    return CommandError(command, int(number), log, service)
