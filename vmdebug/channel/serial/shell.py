"""`exec`: a command in the guest's shell, over the console.

The conversation of `framing`, held; each wait is for an answer, and where one
does not come the agent is asked whether it is there, so that a killed shell or
an answer that was torn by other output is seen long before the deadline.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vmdebug.channel.log.messages import Denoiser
from vmdebug.channel.port import PortAddress
from vmdebug.channel.serial import framing
from vmdebug.channel.serial.console import EXEC, IDLE, Console
from vmdebug.channel.serial.framing import Answers, Block
from vmdebug.channel.shell import Output, Streams
from vmdebug.channel.watch import Debugger
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, VmdebugError, VmError

FIRST_SILENCE = 0.5
"""Seconds of silence after which the agent is asked whether it is there; each time twice as long."""

TERM_SECONDS = 0.5
"""How long a command may take over SIGTERM before SIGKILL."""

STARTS = 3
"""How often the agent is started, where a program in the foreground ate what was typed."""

SHOWN = 60
"""Characters of a command that an error shows."""

LONGEST_ANSWER = 128
"""Bytes of the longest answer but for outputs."""

NOT_FOUND = 127
"""Status of a shell that does not find a program."""

INPUT_PIECE = 32768
"""Bytes of input that a command line carries; more goes into a file of the guest's first."""

ROUND = 32
"""Blocks that are asked for at once."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command left: its outputs, byte for byte, and its status (128 + N: signal N ended it)."""

    stdout: bytes
    stderr: bytes
    status: int


def execute(console: Console, command: str | Sequence[str], *, deadline: Deadline) -> ExecResult:
    """Run a command in the guest.

    It runs as `sh -c COMMAND` below the console's shell, in that shell's directory and
    environment, in a session of its own without a terminal, its input /dev/null. What it
    leaves in the background goes on. Kernel messages of the time stay for `Console.expect`.

    Args:
        console: An open console whose shell is at its prompt, see `Console.wait_ready`.
        command: A line of shell, or an argv.
        deadline: When it is ended, with its process group.

    Raises:
        UsageError: the command is empty or holds a NUL.
        VmError: the command killed the shell it ran in; or the guest lacks what this takes, a
            directory to write to or a program.
        GuestDiedError: the guest died.
        DeadlineError: it took too long; it has been ended, and the console is at its prompt,
            unless the message says otherwise.
    """
    return begin(console, command, deadline=deadline).result(deadline)


def begin(console: Console, command: str | Sequence[str], *, deadline: Deadline) -> Running:
    """Set a command going in the guest, and leave it going; see `execute`.

    The console is the command's until its result has been heard; one begun before is heard out first.

    Args:
        console: An open console whose shell is at its prompt.
        command: A line of shell, or an argv.
        deadline: For setting it going.

    Raises:
        VmdebugError: as in `execute`.
    """
    text = framing.shell_text(command)
    if console.running is not None:
        console.running.result(deadline)
    if console.interrupted:
        console.ready = False
        console.wait_ready(deadline)
    unread = console.take()
    talk = _Talk(console, deadline, command if isinstance(command, str) else " ".join(command))
    console.note(EXEC)
    running = Running(console, talk, unread)
    with running.ended_by_errors():
        talk.begin(text)
    console.running = running
    return running


class Running:
    """A command that runs in the guest; made by `begin`."""

    def __init__(self, console: Console, talk: _Talk, unread: bytes) -> None:
        self._console = console
        self._talk = talk
        self._unread = unread
        self._result: ExecResult | None = None
        self._failure: BaseException | None = None

    def result(self, deadline: Deadline) -> ExecResult:
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
            if isinstance(error, StateError) and self._console.running is self:
                raise
            self._failure = error
            self._talk.abandon(error)
            self._close()
            raise

    def _close(self) -> None:
        console = self._console
        if console.running is self:
            console.running = None
        console.put_back(self._unread + b"".join(self._talk.noise))
        # A command that could not be ended is the next client's to end.
        console.note(EXEC if console.interrupted else IDLE)


class _LostError(VmError):
    """The agent has gone: a shell at its prompt answered in its place."""


class _Talk:
    """One command's conversation with an agent.

    Args:
        console: Where.
        deadline: For all of it.
        command: The command, for errors.
    """

    def __init__(self, console: Console, deadline: Deadline, command: str) -> None:
        self._console = console
        self._deadline = deadline
        self._shown = f"`{command[:SHOWN]}…`" if len(command) > SHOWN else f"`{command}`"
        self._denoiser = Denoiser()
        self._token = framing.token()
        self._answers = Answers.of(self._token)
        self._heard = bytearray()
        self._used = 0
        self._asked = 0
        self._torn = 0
        self._agent = False
        self._ended: re.Match[bytes] | None = None
        self._result: ExecResult | None = None
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

    def result(self, deadline: Deadline) -> ExecResult:
        """Return the command's result; one that was cut short by a stop of the guest goes on where it was."""
        self._deadline = deadline
        if self._ended is None:
            wanted = f"{self._shown} to end in the guest"
            self._ended = self._hear(self._answers.status, wanted, framing.SEND_AGAIN)
        if self._answers.killed in self._heard:
            raise VmError(f"{self._shown} killed the shell that waited for it", hint=_UNKNOWN)
        if self._result is None:
            sent = self._ended[2].decode()
            self._result = ExecResult(self._output("o", sent), self._output("e", sent), int(self._ended[1]))
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
            self._console.interrupted = True  # it can only be ended once the guest runs again
            return
        try:
            if isinstance(error, _LostError):
                self._console.send(framing.remove(self._token))
            elif not self._agent:
                self._console.send(framing.LEAVE_LATER)
            else:
                self._interrupt()
        except VmdebugError:
            self._console.interrupted = True
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
        raise VmError("the guest's shell does not start `sh`", detail=self._console.tail(10))

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
        self._console.send(framing.INTERRUPT)
        try:
            self._hear(self._answers.gone, "the command to end", deadline=Deadline.after(TERM_SECONDS))
        except DeadlineError:
            self._console.send(framing.INTERRUPT)
            self._hear(self._answers.gone, "the command to end", deadline=Deadline.after(TERM_SECONDS))

    def _ask(self, lines: str, question: str, answer: re.Pattern[bytes]) -> re.Match[bytes]:
        """Type lines and a question; return the answer, for which it is asked again where it got torn."""
        self._say(lines + question)
        return self._hear(answer, "the guest's shell to answer", question)

    def _say(self, lines: str) -> None:
        self._console.send(lines)

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
                raise self._console.late(deadline, wanted, hint=_HINTS.get(wanted, ""))
            if ask_at.passed:
                self._asked += 1
                self._say(framing.are_you_there(self._token, self._asked))
                silence *= 2
                ask_at = Deadline.after(silence)
            soonest = min(deadline.at, ask_at.at) - time.monotonic()
            if clean := self._denoiser.feed(self._console.receive(max(0.0, soonest), wanted)):
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


class SerialShell:
    """Runs commands by the shell on the console, one at a time.

    Args:
        address: The console's socket and its lock.
        log: Its log.
        owner: Has the console of this process, where that is open, and the debugger.
    """

    def __init__(self, address: PortAddress, log: Path, *, owner: Owner) -> None:
        self._address = address
        self._log = log
        self._owner = owner

    def begin(self, line: bytes, streams: Streams, *, deadline: Deadline) -> SerialRunning:
        """Start a command; see `Shell.begin`. A descriptor of its input is read up to its end first."""
        with contextlib.ExitStack() as held:
            console = self._owner.console
            if console is None:
                console = Console(self._address.socket, self._address.lock, self._log)
                held.enter_context(console)
            console.meanwhile = self._owner.debugger
            console.wait_ready(deadline)
            text = _with_input(console, line, input_of(streams), deadline)
            running = begin(console, text.decode("utf-8", "surrogateescape"), deadline=deadline)
            return SerialRunning(running, held.pop_all(), streams)

    def wait_ready(self, deadline: Deadline, *, before: str = "") -> None:
        """Wait until the shell answers.

        Args:
            deadline: Until when.
            before: A command that it runs before it answers; it prints nothing and may be run twice.

        Raises:
            VmdebugError: as `Console.wait_ready`.
        """
        with contextlib.ExitStack() as held:
            console = self._owner.console
            if console is None:
                console = Console(self._address.socket, self._address.lock, self._log)
                held.enter_context(console)
            console.wait_ready(deadline, before=before)


def input_of(streams: Streams) -> bytes | None:
    """Return a command's whole input; a descriptor is read up to its end."""
    if not isinstance(streams.stdin, int):
        return streams.stdin
    with os.fdopen(os.dup(streams.stdin), "rb") as stream:
        return stream.read()


def _with_input(console: Console, line: bytes, data: bytes | None, deadline: Deadline) -> bytes:
    """Return a command that brings its input: in itself, or in a file that was written in pieces before."""
    if data is None:
        return line
    if len(data) <= INPUT_PIECE:
        return framing.with_input(line, data)
    found = execute(console, "mktemp", deadline=deadline)
    if found.status != 0:
        raise VmError(
            "the guest has no file for the command's input", detail=found.stderr.decode(errors="replace")
        )
    file = found.stdout.strip()
    for start in range(0, len(data), INPUT_PIECE):
        piece = framing.with_input(b"cat >>" + file, data[start : start + INPUT_PIECE])
        execute(console, piece.decode("utf-8", "surrogateescape"), deadline=deadline)
    return b"{ rm " + file + b"\n" + line + b"\n} <" + file


class Owner(Protocol):
    """Who has the console of this process."""

    console: Console | None
    debugger: Debugger | None


class SerialRunning:
    """A command that runs over the serial line.

    Args:
        running: It.
        held: The console, where it was opened for the command.
        streams: Its streams; what it writes comes once it has ended.
    """

    def __init__(self, running: Running, held: contextlib.ExitStack, streams: Streams) -> None:
        self._running = running
        self._held = held
        self._streams = streams

    def result(self, deadline: Deadline) -> Output:
        """Wait for its end; see `channel.shell.Running.result`."""
        try:
            done = self._running.result(deadline)
        except StateError:
            raise  # the command goes on with the guest
        except BaseException:
            self._held.close()
            raise
        self._held.close()
        outputs = []
        for data, sink in ((done.stdout, self._streams.stdout), (done.stderr, self._streams.stderr)):
            if sink is not None and data:
                sink(data)
            outputs.append(data if sink is None else b"")
        return Output(outputs[0], outputs[1], done.status)

    def cancel(self) -> None:
        """End it; see `channel.shell.Running.cancel`."""
        self._running.cancel()
        self._held.close()


_FREE = "the guest's shell to take a command"
_TOOLS = "exec takes the tools of busybox, or of GNU coreutils and util-linux"
_UNKNOWN = "its status and its output are not known"
_HANGS = "the console does not answer to ^C either: does the guest hang, or is it stopped by a debugger?"
_HINTS = {_FREE: "something else may be in the foreground there; look with `vmdebug console`"}
