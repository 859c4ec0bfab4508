"""`exec`: a command in the guest's shell, over the console.

The conversation of `framing`, held; each wait is for an answer, and where one
does not come the agent is asked whether it is there, so that a killed shell or
an answer that was torn by other output is seen long before the deadline.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence

from vmdebug.channel.log.messages import Denoiser
from vmdebug.channel.serial import framing, ready
from vmdebug.channel.serial.framing import Answers, Block
from vmdebug.channel.serial.ready import Line
from vmdebug.channel.shell import Output, command_line, shown
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, VmdebugError, VmError

IDLE = "console"
EXEC = "exec"
"""The note in the lock of a client, and of one that runs a command."""

FIRST_SILENCE = 0.5
"""Seconds of silence after which the agent is asked whether it is there; each time twice as long."""

TERM_SECONDS = 0.5
"""How long a command may take over SIGTERM before SIGKILL."""

STARTS = 3
"""How often the agent is started, where a program in the foreground ate what was typed."""

LONGEST_ANSWER = 128
"""Bytes of the longest answer but for outputs."""

NOT_FOUND = 127
"""Status of a shell that does not find a program."""

ROUND = 32
"""Blocks that are asked for at once."""


class LineShell:
    """The shell on a console: whether it is at its prompt, and the command that it runs.

    Args:
        line: The console.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.ready = False
        """Whether the shell has answered on this connection."""
        self.interrupted = False
        """Whether a command may be in the foreground that nobody waits for."""
        self.running: Running | None = None
        """The command whose result nobody has heard."""

    @property
    def unfinished(self) -> bool:
        """Whether the next client finds a command in the foreground."""
        return self.interrupted or self.running is not None

    def forget(self) -> None:
        """Take note that the guest is an earlier one, or that the connection has ended."""
        self.ready = self.interrupted = False
        self.running = None

    def wait_ready(self, deadline: Deadline, *, before: str = "") -> None:
        """Wait until the shell answers; return at once where it has answered already.

        Args:
            deadline: Until when.
            before: A command that it runs before it answers; it prints nothing and may be run twice.

        Raises:
            VmError: somebody else reads the console, who wants a password or a decision.
            GuestDiedError: the guest died.
            DeadlineError: no shell answered.
        """
        if not self.ready:
            ready.wait(self.line, deadline, interrupting=self.interrupted, before=before)
            self.ready, self.interrupted = True, False

    def execute(self, command: str | Sequence[str] | bytes, *, deadline: Deadline) -> Output:
        """Run a command in the guest.

        It runs as `sh -c COMMAND` below the console's shell, in that shell's directory and environment, in a
        session of its own without a terminal, with /dev/null as its input. Its background processes continue.
        Kernel messages that arrive meanwhile stay for `Console.expect`.

        Args:
            command: A line of shell, an argv, or what `command_line` returned.
            deadline: When it is ended, with its process group.

        Raises:
            UsageError: the command is empty or holds a NUL.
            VmError: the command killed the shell it ran in; or the guest lacks what this takes, a
                directory to write to or a program.
            GuestDiedError: the guest died.
            DeadlineError: it took too long; it has been ended, and the console is at its prompt,
                unless the message says otherwise.
        """
        return self.begin(command, deadline=deadline).result(deadline)

    def begin(self, command: str | Sequence[str] | bytes, *, deadline: Deadline) -> Running:
        """Start a command in the guest; see `execute`.

        The console is the command's until its result has been heard; one begun before is heard out first.

        Raises:
            VmdebugError: as in `execute`.
        """
        text = command if isinstance(command, bytes) else command_line(command)
        if self.running is not None:
            self.running.result(deadline)
        if self.interrupted:
            self.ready = False
            self.wait_ready(deadline)
        unread = self.line.take()
        talk = _Talk(self, deadline, text)
        self.line.note(EXEC)
        running = Running(self, talk, unread)
        with running.ended_by_errors():
            talk.begin(text)
        self.running = running
        return running


class Running:
    """A command that runs in the guest; made by `begin`."""

    def __init__(self, shell: LineShell, talk: _Talk, unread: bytes) -> None:
        self._shell = shell
        self._talk = talk
        self._unread = unread
        self._result: Output | None = None
        self._failure: BaseException | None = None

    def result(self, deadline: Deadline) -> Output:
        """Wait for its end; return what it left, also when it is asked again.

        Args:
            deadline: When it is ended, with its process group.

        Raises:
            StateError: a debugger has stopped the guest; the command goes on with it, and can be waited for
                again.
            VmdebugError: as in `execute`.
        """
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            with self.ended_by_errors():
                self._result = self._talk.result(deadline)
            self._close()
        return self._result

    def cancel(self) -> None:
        """End it, unless it has ended."""
        if self._result is None and self._failure is None:
            self._failure = VmError("the command was cancelled")
            self._talk.abandon(self._failure)
            self._close()

    @contextlib.contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """End it where the block fails, but for a guest that a debugger has stopped."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, StateError) and self._shell.running is self:
                raise
            self._failure = error
            self._talk.abandon(error)
            self._close()
            raise

    def _close(self) -> None:
        shell = self._shell
        if shell.running is self:
            shell.running = None
        shell.line.put_back(self._unread + b"".join(self._talk.noise))
        # A command that could not be ended is the next client's to end.
        shell.line.note(EXEC if shell.interrupted else IDLE)


class _LostError(VmError):
    """The agent has gone: a shell at its prompt answered in its place."""


class _Talk:
    """One command's conversation with an agent.

    Args:
        shell: The shell that starts the agent.
        deadline: For all of it.
        command: The command, for errors.
    """

    def __init__(self, shell: LineShell, deadline: Deadline, command: bytes) -> None:
        self._shell = shell
        self._line = shell.line
        self._deadline = deadline
        self._shown = shown(command)
        self._denoiser = Denoiser()
        self._token = framing.token()
        self._answers = Answers.of(self._token)
        self._heard = bytearray()
        self._used = 0
        self._asked = 0
        self._torn = 0
        self._agent = False
        self._ended: re.Match[bytes] | None = None
        self._result: Output | None = None
        self._leaving = False

    @property
    def noise(self) -> list[bytes]:
        """The kernel messages that came meanwhile."""
        return self._denoiser.noise

    def begin(self, command: bytes) -> None:
        """Set the command going; see `begin`."""
        umask = self._start()
        *groups, last = framing.upload(command)
        typed = framing.PREPARE
        for group in groups:
            taken = self._ask(typed + group.lines, framing.ACKNOWLEDGE, self._answers.length)
            if int(taken[1]) != group.length:
                raise VmError(f"of {group.length} bytes typed into the guest {int(taken[1])} arrived")
            typed = ""
        self._say(typed + last.lines + framing.run(umask))

    def result(self, deadline: Deadline) -> Output:
        """Return the command's result; one that was cut short by a stop of the guest goes on where it was."""
        self._deadline = deadline
        if self._ended is None:
            wanted = f"{self._shown} to end in the guest"
            self._ended = self._hear(self._answers.status, wanted, framing.SEND_AGAIN)
        if self._answers.killed in self._heard:
            raise VmError(f"{self._shown} killed the shell that waited for it", hint=_UNKNOWN)
        if self._result is None:
            sent = self._ended[2].decode()
            self._result = Output(self._output("o", sent), self._output("e", sent), int(self._ended[1]))
        if self._result.status == NOT_FOUND and framing.NO_SETSID.search(self._result.stderr):
            raise VmError("the guest has no setsid", hint=_TOOLS)
        if not self._leaving:
            self._say(framing.LEAVE)
            self._leaving = True
        self._hear(self._answers.gone, "the shell's prompt to come back")
        self._agent = False
        return self._result

    def abandon(self, error: BaseException) -> None:
        """After an error, leave the console at its prompt as far as that goes."""
        if isinstance(error, GuestDiedError):
            return
        if isinstance(error, StateError):
            self._shell.interrupted = True  # it can only be ended once the guest runs again
            return
        try:
            if isinstance(error, _LostError):
                self._line.send(framing.remove(self._token))
            elif not self._agent:
                self._line.send(framing.LEAVE_LATER)
            else:
                self._interrupt()
        except VmdebugError:
            self._shell.interrupted = True
            if isinstance(error, VmdebugError):
                error.hint = _HANGS

    def _start(self) -> str:
        """Start the agent; return the umask that it found."""
        for _ in range(STARTS):
            self._say(framing.start(self._token))
            try:
                umask = self._hear(self._answers.ready, _FREE)[1].decode()
            except _LostError:
                continue
            self._agent = True
            return umask
        raise VmError("the guest's shell does not start `sh`", detail=self._line.tail(10))

    def _output(self, file: str, sent: str) -> bytes:
        """Return an output of those that were sent; fetched again where it did not come whole."""
        if file not in sent:
            return b""
        for came in self._answers.output.finditer(self._heard):
            if came[1].decode() == file and (data := framing.unpack(came[2])) is not None:
                return data
        for came in self._answers.short.finditer(self._heard):
            if came[1].decode() == file:
                data = framing.unpack_short(came[3], int(came[2]))
                if data is not None:
                    return data
        sizes = self._ask("", framing.ASK_SIZES, self._answers.sizes)
        if missing := sizes[3].decode():
            raise VmError(
                f"the guest has no {missing[1:].replace('-', ', ')}",
                hint=_TOOLS,
            )
        return self._by_blocks(file, int(sizes["oe".index(file) + 1]))

    def _by_blocks(self, file: str, size: int) -> bytes:
        """Return an output fetched in blocks, each as often and as small as it takes."""
        self._say(framing.BLOCKS)
        wanted = framing.blocks_of(file, size)
        have: dict[int, bytes] = {}
        while wanted:
            now, wanted = wanted[:ROUND], wanted[ROUND:]
            start = self._used
            self._ask("", framing.ask_blocks(now), self._answers.end_of_blocks)
            came = self._blocks(start)
            for block in now:
                data = came.get(block)
                if data is None:
                    wanted += block.parts(size)
                else:
                    have[block.index * block.size] = data
        return b"".join(have[offset] for offset in sorted(have))

    def _blocks(self, start: int) -> dict[Block, bytes | None]:
        """Return the blocks that have come since `start`; None for those that came torn."""
        return {
            Block(came[1].decode(), int(came[2]), int(came[3])): framing.unpack_block(came[5], came[4])
            for came in self._answers.block.finditer(self._heard, start)
        }

    def _interrupt(self) -> None:
        """End the command and the agent."""
        self._line.send(framing.INTERRUPT)
        try:
            self._hear(self._answers.gone, "the command to end", deadline=Deadline.after(TERM_SECONDS))
        except DeadlineError:
            self._line.send(framing.INTERRUPT)
            self._hear(self._answers.gone, "the command to end", deadline=Deadline.after(TERM_SECONDS))

    def _ask(self, lines: str, question: str, answer: re.Pattern[bytes]) -> re.Match[bytes]:
        """Type lines and a question; return the answer, for which it is asked again where it got torn."""
        self._say(lines + question)
        return self._hear(answer, "the guest's shell to answer", question)

    def _say(self, lines: str) -> None:
        self._line.send(lines)

    def _hear(
        self, answer: re.Pattern[bytes], wanted: str, again: str = "", *, deadline: Deadline | None = None
    ) -> re.Match[bytes]:
        """Return the next answer of a kind.

        Args:
            answer: Its pattern.
            wanted: What is waited for, for the error.
            again: What has it sent again.
            deadline: Until when, instead of the command's.
        """
        deadline = deadline or self._deadline
        silence = FIRST_SILENCE
        ask_at = Deadline.after(silence)
        searched = self._used
        while not (found := answer.search(self._heard, searched)):
            self._heed(searched, again)
            # The beginning of an answer may be at the end of what was heard.
            searched = max(searched, len(self._heard) - LONGEST_ANSWER)
            if deadline.passed:
                raise self._line.late(deadline, wanted, hint=_HINTS.get(wanted, ""))
            if ask_at.passed:
                self._asked += 1
                self._say(framing.are_you_there(self._token, self._asked))
                silence *= 2
                ask_at = Deadline.after(silence)
            soonest = min(deadline.at, ask_at.at) - time.monotonic()
            if clean := self._denoiser.feed(self._line.receive(max(0.0, soonest), wanted)):
                self._heard += clean
                ask_at = Deadline.after(silence)
        self._used = found.end()
        return found

    def _heed(self, start: int, again: str) -> None:
        """Look for what is said in place of an answer."""
        if self._heard.find(self._answers.nowhere, start) >= 0:
            self._used = len(self._heard)
            raise VmError(
                "the guest has no directory that can be written to",
                hint=f"mount a tmpfs on one of {framing.DIRECTORIES}",
            )
        for lost in self._answers.lost.finditer(self._heard, start):
            # Those before the last one may have lain in the terminal since before the agent was started.
            if int(lost[1]) == self._asked:
                raise _LostError(f"{self._shown} killed the shell that it ran in", hint=_UNKNOWN)
        for idle in self._answers.idle.finditer(self._heard, start):
            if int(idle[1]) == self._asked and self._torn < self._asked:
                self._torn = self._asked
                self._say(again)


_FREE = "the guest's shell to take a command"
_TOOLS = "exec takes the tools of busybox, or of GNU coreutils and util-linux"
_UNKNOWN = "its status and its output are not known"
_HANGS = "the console does not answer to ^C either: does the guest hang, or is it stopped by a debugger?"
_HINTS = {_FREE: "something else may be in the foreground there; look with `vmdebug console`"}
