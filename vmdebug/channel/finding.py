"""Finds the way into a guest: asks all of them at once, and takes the best one that answers."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from vmdebug import locks
from vmdebug.channel import port
from vmdebug.channel.agent.session import EndedError, Session, VersionError
from vmdebug.channel.found import ORDER, REASONS, Found, Kind
from vmdebug.channel.port import PortAddress, Ways
from vmdebug.channel.watch import NO_ANSWER_HINT, Watch
from vmdebug.deadline import Deadline

BETTER_SECONDS = 1.0
"""Once one way has answered: how long to wait for a better one."""

PROMPT_SECONDS = 3.0
"""Once the console shows a prompt: how long to wait for an agent."""

IN_USE = 5
"""How many times as long to wait while another client has the console, and no command can use it."""

FIRST_CHECK = 0.3
"""Seconds without an answer after which vmdebug asks QEMU whether the guest runs."""

AGAIN = 0.5
"""Seconds between two requests on each way."""

STEP = 0.1
"""Seconds between two reads of the console's log."""

WANTED = "a shell in the guest"


class Candidate(Protocol):
    """A connected way, which has not answered yet."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""

    def ask(self) -> None:
        """Send the request; call it again to repeat the request."""

    def answered(self) -> bool:
        """Read what has arrived, and return whether the answer is complete."""

    def close(self) -> None:
        """Disconnect."""


class Search:
    """Asks the ways into a guest until one answers; a context manager.

    Args:
        ways: The addresses of the ways.
        watch: Raises if the guest dies.
        patience: Once the console shows a prompt, seconds to wait for an agent.
    """

    def __init__(self, ways: Ways, watch: Watch, patience: float) -> None:
        self._ways = ways
        self._watch = watch
        self._patience = patience
        self._held = contextlib.ExitStack()
        self._asked: dict[Kind, Candidate] = {}
        self._busy: dict[Kind, Sequence[PortAddress]] = {}
        self._found: Found | None = None
        self._found_at = 0.0
        self._mismatch = ""

    def __enter__(self) -> Self:
        """Connect to the ways."""
        ways = self._ways
        try:
            self._connect("agent", ways.ports)
            self._connect("agent-uart", [ways.uart])
            self._connect("guest-agent", [ways.guest_agent])
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def result(self, deadline: Deadline, check: Callable[[], None]) -> Found:
        """Return the best way that answers.

        Args:
            deadline: When to give up.
            check: Raises StateError if the guest does not run.

        Raises:
            StateError: the guest does not run.
            GuestDiedError: the guest has died.
            DeadlineError: no way answers.
        """
        began = time.monotonic()
        ask_at, check_at = began, began + FIRST_CHECK
        console = _Console(self._watch)
        while True:
            now = time.monotonic()
            if self._found is not None and (self._best or now >= self._found_at + BETTER_SECONDS):
                return self._found
            if deadline.passed:
                raise deadline.error(WANTED, hint=NO_ANSWER_HINT, detail=self._watch.tail(10))
            if now >= ask_at:
                self._retry()
                for each in self._asked.values():
                    each.ask()
                ask_at = now + AGAIN
            if now >= check_at:
                check()
                check_at = now + 2 * (now - began)
            # Without a port, no agent can answer.
            patience = self._patience if self._asked or self._busy else 0.0
            unanswered = self._found is None and now >= began + FIRST_CHECK
            if unanswered and (seconds := console.prompt_seconds()) >= patience:
                if other := self._of_others():
                    return other
                if seconds >= patience * IN_USE or not self._console_in_use():
                    return Found("serial", self._mismatch or REASONS["serial"])
            self._turn(min(STEP, deadline.remaining))

    @property
    def _best(self) -> bool:
        """Whether no better way than the one found may still answer."""
        assert self._found is not None  # noqa: S101 - the caller has checked this
        return all(ORDER.index(each) >= ORDER.index(self._found.kind) for each in self._asked)

    def _connect(self, kind: Kind, addresses: Sequence[PortAddress]) -> None:
        self._busy.pop(kind, None)
        opened = None
        try:
            for address in addresses:
                opened = opened or port.try_take(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return  # this QEMU has no such port, or has ended, which `Watch` reports
        if opened is None:
            self._busy[kind] = addresses
            return
        line: Candidate = Session(opened)
        if kind == "guest-agent":
            from vmdebug.channel import guest_agent  # noqa: PLC0415 - only needed once for a VM

            line = guest_agent.Line(opened, self._watch)
        self._held.callback(line.close)
        self._asked[kind] = line

    def _retry(self) -> None:
        """Look again at the ways that other clients use: for a command, or for a search like this one.

        Only who has an answer writes it down. In a guest that boots, all may be searching.
        """
        known = Found.read(self._ways.memory) if self._busy else None
        if known is not None and known.kind in self._busy:
            self._take(known.kind)
            return
        for kind, addresses in list(self._busy.items()):
            self._connect(kind, addresses)

    def _of_others(self) -> Found | None:
        """Return the agent that another client has found; None if none has.

        On a busy machine one of many clients hears the agent seconds before another one.
        """
        known = Found.read(self._ways.memory)
        return None if known is None or known.kind == "serial" else known

    def _console_in_use(self) -> bool:
        lock = self._ways.console.lock
        with contextlib.suppress(OSError, ValueError, IndexError):
            return locks.is_held(lock, int(lock.read_text().split()[0]))
        return False

    def _turn(self, seconds: float) -> None:
        descriptors = {each.fileno(): select.POLLIN for each in self._asked.values()}
        ready = self._watch.wait(descriptors, seconds, WANTED)
        for kind, each in list(self._asked.items()):
            try:
                if each.fileno() in ready and each.answered():
                    self._take(kind)
            except EndedError as error:
                raise self._watch.died(WANTED) from error
            except VersionError as error:
                self._mismatch = error.message
                del self._asked[kind]

    def _take(self, kind: Kind) -> None:
        if self._found is None or ORDER.index(kind) < ORDER.index(self._found.kind):
            self._found = Found(kind, self._mismatch or REASONS[kind])
            self._found_at = time.monotonic()


class _Console:
    """Measures for how long the console has shown a prompt."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._text = b""
        self._since = 0.0

    def prompt_seconds(self) -> float:
        """Return for how many seconds the console has shown the same prompt; -1.0 if it shows none."""
        from vmdebug.channel.serial import ready  # noqa: PLC0415 - only needed if no agent answers at once

        text = self._watch.tail_bytes()[-ready.KEPT :]
        if text != self._text or self._since == 0.0:
            self._text, self._since = text, time.monotonic()
        return time.monotonic() - self._since if ready.look(text) is not ready.Look.OTHER else -1.0
