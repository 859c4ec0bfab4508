"""Waits for the guest, and notices if it dies or a debugger stops it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from vmdebug.channel.log import death, kept
from vmdebug.channel.log.inotify import Inotify
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import GuestDiedError

FIRST_SECONDS = 0.1
"""How long to wait before following the console's log; most answers come within milliseconds."""

FIRST_SILENCE_SECONDS, LAST_SILENCE_SECONDS = 1.0, 8.0
"""Seconds of silence after which QEMU is asked whether the guest lives; the time doubles up to the second
value."""

PANIC_OUTPUT_SECONDS = 0.5
"""How long to wait for the rest of a panic's output, for the error."""

QEMU_ENDED = "QEMU has ended"

NO_ANSWER_HINT = "is the guest stopped by a debugger, or does it still boot?"

TAIL_BYTES = 1 << 18
TAIL_LINES = 40
"""How much of the log an error shows: enough for a panic with its trace."""


class Debugger(Protocol):
    """A debugger that may stop the guest; `debugger.gdb.Gdb` implements it."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the guest stops; or -1."""

    def check_stop(self) -> None:
        """Raise StateError if the guest has stopped and will not continue by itself."""

    def runs(self) -> bool:
        """Whether it lets the guest run: it may still stop it for a moment, as at each hit of a trace."""


class Silence:
    """Asks how the guest died, after increasing periods of silence: its console may not show it.

    Args:
        cause: Asks QEMU; returns "" while the guest lives.
    """

    def __init__(self, cause: Callable[[], str]) -> None:
        self._cause = cause
        self.end()

    def end(self) -> None:
        """Record that the guest may have said something."""
        self._seconds = FIRST_SILENCE_SECONDS
        self._ask_at = time.monotonic() + self._seconds

    def ask_now(self) -> str:
        """Return how the guest died, whether or not it has been silent; "" if it lives."""
        return self._cause()

    def ask(self) -> str:
        """Return how the guest died, if it has been silent for long enough to ask; else ""."""
        if time.monotonic() < self._ask_at:
            return ""
        cause = self._cause()
        self._seconds = min(2 * self._seconds, LAST_SILENCE_SECONDS)
        self._ask_at = time.monotonic() + self._seconds
        return cause


class Watch:
    """Waits on descriptors, and raises if the guest dies or stops meanwhile.

    Args:
        log: The console's log.
        debugger: The debugger that may stop the guest, or None.
        cause: Asks QEMU how the guest died; returns "" while it lives. The log may be full, and not show it.
    """

    def __init__(
        self, log: Path, debugger: Debugger | None = None, *, cause: Callable[[], str] = lambda: ""
    ) -> None:
        self.log = log
        self.debugger = debugger
        self._silence = Silence(cause)
        self._held = contextlib.ExitStack()
        self._open: tuple[IO[bytes], Inotify] | None = None
        self._seen = b""

    def close(self) -> None:
        """Stop following the log."""
        self._open = None
        self._held.close()

    def wait(self, descriptors: Mapping[int, int], seconds: float, wanted: str) -> frozenset[int]:
        """Return the descriptors that are ready.

        Args:
            descriptors: The events to wait for on each one: `select.POLLIN`, `select.POLLOUT`.
            seconds: How long to wait at most.
            wanted: What the caller waits for, for the error.

        Returns:
            The ready descriptors; empty if the time has passed.

        Raises:
            StateError: a debugger has stopped the guest.
            GuestDiedError: the guest has died, according to the console's log or QEMU.
        """
        ready = self._wait(descriptors, seconds, wanted)
        if ready:
            self._silence.end()
        elif cause := self._silence.ask():
            raise self.died(wanted, cause)
        return ready

    def _wait(self, descriptors: Mapping[int, int], seconds: float, wanted: str) -> frozenset[int]:
        if self._open is None:
            # Do not open two more descriptors for a quick answer.
            ready = self._poll(descriptors, min(seconds, FIRST_SECONDS))
            if ready or seconds <= FIRST_SECONDS:
                return ready
            seconds -= FIRST_SECONDS
            self._follow()
            self._look(wanted)
        end = time.monotonic() + seconds
        while True:
            ready = self._poll(descriptors, max(0.0, end - time.monotonic()))
            if ready or time.monotonic() >= end:
                return ready
            self._look(wanted)

    def died(self, wanted: str, cause: str = "") -> GuestDiedError:
        """Return the error for a guest that has died, with the end of its output.

        Args:
            wanted: What the caller waited for.
            cause: How it died; "": find it in the log, else ask QEMU, which has probably ended.
        """
        end = Deadline.after(PANIC_OUTPUT_SECONDS)
        with contextlib.suppress(FileNotFoundError), Inotify(self.log) as inotify:
            while cause and death.END_OF_PANIC not in self.tail_bytes() and not end.passed:
                inotify.discard()
                if not inotify.wait(end.remaining):
                    break
        in_log = death.cause_in_log(self.tail_bytes())
        ended = "" if in_log or cause else self._silence.ask_now() or QEMU_ENDED
        name = self.log.parent.name
        # If the console does not show the reason, the kernel's log in guest memory does.
        verb = "log" if in_log or ended else "dmesg"
        hint = f"`vmdebug {verb} {name}` shows all of its output"
        return GuestDiedError(
            f"the guest died while vmdebug waited for {wanted}: {in_log or cause or ended}",
            hint=hint,
            detail=self.tail(),
        )

    def tail_bytes(self) -> bytes:
        """Return the end of the log; b"" if the log is gone."""
        if self._open is not None:
            stream = self._open[0].fileno()
            return os.pread(stream, TAIL_BYTES, max(0, os.fstat(stream).st_size - TAIL_BYTES))
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as stream_:
            stream_.seek(max(0, os.fstat(stream_.fileno()).st_size - TAIL_BYTES))
            return stream_.read()
        return b""

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of the log."""
        from vmdebug.channel.log import messages  # noqa: PLC0415 - only imported for errors

        return messages.tail(self.tail_bytes(), lines)

    def _poll(self, descriptors: Mapping[int, int], seconds: float) -> frozenset[int]:
        stopped = -1 if self.debugger is None else self.debugger.fileno()
        inotify = -1 if self._open is None else self._open[1].fileno()
        ready = wait_ready(stopped, inotify, seconds=seconds, events=descriptors)
        if stopped in ready and self.debugger is not None and not ready & descriptors.keys():
            self.debugger.check_stop()
        return frozenset(ready & descriptors.keys())

    def _follow(self) -> None:
        with contextlib.suppress(OSError):  # removed because QEMU has ended, which the sockets show
            stream = self._held.enter_context(self.log.open("rb", buffering=0))
            inotify = self._held.enter_context(Inotify(self.log))
            self._open = stream, inotify
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))

    def _look(self, wanted: str) -> None:
        if self._open is None:
            return
        stream, inotify = self._open
        inotify.discard()
        while new := kept.read_next(stream.fileno(), TAIL_BYTES):
            cause = death.cause_in_log(self._seen + new)
            self._seen = (self._seen + new)[-death.WINDOW :]
            if cause:
                raise self.died(wanted, cause)
