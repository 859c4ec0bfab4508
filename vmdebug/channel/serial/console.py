"""The public API of a guest's serial line."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self

from vmdebug.channel.serial.line import SEND_SECONDS, SerialLine
from vmdebug.channel.watch import TAIL_LINES
from vmdebug.deadline import Deadline


class Console:
    """The serial line of a guest, as a person at its terminal uses it; a context manager.

    Made by `Vm.console()` and `DebugSession.console`. One client at a time can have it open.

    Args:
        line: The connection. It is not part of the API.
    """

    def __init__(self, line: SerialLine) -> None:
        self.line = line

    def __enter__(self) -> Self:
        """Connect to the serial line.

        Raises:
            StateError: another client uses it; the message has its pid.
            GuestDiedError: QEMU has ended.
        """
        self.line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.line.__exit__(kind, error, trace)

    def send(self, text: str, *, timeout: float = SEND_SECONDS) -> None:
        """Type text.

        Args:
            text: The text; UTF-8 with surrogate escapes.
            timeout: Seconds that the guest may accept no input. A long text may take longer in total.

        Raises:
            DeadlineError: the guest accepts no more input.
            GuestDiedError: QEMU has ended.
        """
        self.line.send(text, patience=timeout)

    def sendline(self, text: str = "", *, timeout: float = SEND_SECONDS) -> None:
        """Type a line; see `send`."""
        # LF ends a line also if the terminal does not translate CR.
        self.send(f"{text}\n", timeout=timeout)

    def expect(self, pattern: str | re.Pattern[str], *, timeout: float) -> re.Match[str]:
        """Wait until the guest writes text that matches a pattern.

        Args:
            pattern: Regular expression, as pexpect takes it: a dot also matches a newline, and a terminal's
                lines end in CR LF. The text is UTF-8 with surrogate escapes.
            timeout: Seconds to wait.

        Returns:
            The match. The output up to its end is consumed.

        Raises:
            GuestDiedError: the guest has died; the detail has its last output.
            DeadlineError: no output matched in time.
        """
        return self.line.expect(pattern, Deadline.after(timeout))

    def read_until(self, pattern: str | re.Pattern[str], *, timeout: float) -> str:
        """Return the guest's output up to the end of a match; see `expect`."""
        found = self.line.expect(pattern, Deadline.after(timeout))
        return self.line.before + found[0]

    def wait_ready(self, *, timeout: float) -> None:
        """Wait until a shell answers on the console; return at once if it has answered before.

        Args:
            timeout: Seconds to wait.

        Raises:
            VmError: a program on the console asks for a password or a decision.
            GuestDiedError: the guest died.
            DeadlineError: no shell answered.
        """
        self.line.shell.wait_ready(Deadline.after(timeout))

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of the guest's output since its start, without the output of `exec`."""
        return self.line.tail(lines)
