"""Runs one command in the guest's shell on the console, by the protocol of `framing`.

If an answer does not come, vmdebug probes the helper, so that it detects a killed shell, or an answer
that other output has damaged, long before the deadline.
"""

from __future__ import annotations

import re
import time

from vmdebug.channel.log.messages import MessageFilter
from vmdebug.channel.serial import framing
from vmdebug.channel.serial.framing import Answers, Block
from vmdebug.channel.serial.ready import Line
from vmdebug.channel.shell import Output, shown
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, VmdebugError, VmError

FIRST_SILENCE = 0.5
"""Seconds of silence after which the helper is probed; the time doubles with each probe."""

TERM_SECONDS = 0.5
"""How long a command may take to end at SIGTERM before it gets SIGKILL."""

STARTS = 3
"""How many times to start the helper, if a program in the foreground reads the typed line."""

LONGEST_ANSWER = 128
"""Bytes of the longest answer, outputs excepted."""

NOT_FOUND = 127
"""A shell's status if it does not find a program."""

ROUND = 32
"""Number of blocks to request at once."""


class _LostError(VmError):
    """The helper has ended: a shell at its prompt answered instead."""


class Exchange:
    """The exchange with a helper that runs one command.

    Args:
        line: The console. Its shell starts the helper.
        deadline: When to give up.
        command: The command, for errors.
    """

    def __init__(self, line: Line, deadline: Deadline, command: bytes) -> None:
        self._line = line
        self._deadline = deadline
        self._shown = shown(command)
        self._filter = MessageFilter()
        self._token = framing.token()
        self._answers = Answers.of(self._token)
        self._received = bytearray()
        self._consumed = 0
        self._probes = 0
        self._repeated_at = 0
        self._started = False
        self._ended: re.Match[bytes] | None = None
        self._result: Output | None = None
        self._leaving = False

    @property
    def kernel_messages(self) -> list[bytes]:
        """The kernel messages that arrived meanwhile."""
        return self._filter.messages

    def begin(self, command: bytes) -> None:
        """Start the command."""
        umask = self._start()
        *groups, last = framing.upload(command)
        typed = framing.PREPARE
        for group in groups:
            taken = self._query(typed + group.lines, framing.ACKNOWLEDGE, self._answers.length)
            if int(taken[1]) != group.length:
                raise VmError(f"only {int(taken[1])} of {group.length} bytes typed into the guest arrived")
            typed = ""
        self._type(typed + last.lines + framing.run(umask))

    def result(self, deadline: Deadline) -> Output:
        """Return the command's result. After a stop of the guest, a second call continues the first one."""
        self._deadline = deadline
        if self._ended is None:
            wanted = f"{self._shown} to end in the guest"
            self._ended = self._read_answer(self._answers.status, wanted, framing.SEND_AGAIN)
        if self._answers.killed in self._received:
            raise VmError(f"{self._shown} killed the shell that ran it", hint=_UNKNOWN)
        if self._result is None:
            sent = self._ended[2].decode()
            self._result = Output(self._output("o", sent), self._output("e", sent), int(self._ended[1]))
        if self._result.status == NOT_FOUND and framing.NO_SETSID.search(self._result.stderr):
            raise VmError("the guest has no setsid", hint=_TOOLS)
        if not self._leaving:
            self._type(framing.LEAVE)
            self._leaving = True
        self._read_answer(self._answers.gone, "the shell's prompt to come back")
        self._started = False
        return self._result

    def abandon(self, error: BaseException) -> bool:
        """After an error, bring the console back to its prompt.

        Returns:
            Whether that is possible; otherwise the command may still run in the foreground.
        """
        if isinstance(error, GuestDiedError):
            return True
        if isinstance(error, StateError):
            return False  # the command can be ended only when the guest runs again
        try:
            if isinstance(error, _LostError):
                self._line.send(framing.remove(self._token))
            elif not self._started:
                self._line.send(framing.LEAVE_LATER)
            else:
                self._interrupt()
        except VmdebugError:
            if isinstance(error, VmdebugError):
                error.hint = _HANGS
            return False
        return True

    def _start(self) -> str:
        """Start the helper, and return the umask of the shell."""
        for _ in range(STARTS):
            self._type(framing.start(self._token))
            try:
                umask = self._read_answer(self._answers.ready, _FREE)[1].decode()
            except _LostError:
                continue
            self._started = True
            return umask
        raise VmError("the shell in the guest does not start `sh`", detail=self._line.tail(10))

    def _output(self, file: str, sent: str) -> bytes:
        """Return one of the outputs; fetch it in blocks if it arrived damaged."""
        if file not in sent:
            return b""
        for came in self._answers.output.finditer(self._received):
            if came[1].decode() == file and (data := framing.unpack(came[2])) is not None:
                return data
        for came in self._answers.short.finditer(self._received):
            if came[1].decode() == file:
                data = framing.unpack_short(came[3], int(came[2]))
                if data is not None:
                    return data
        sizes = self._query("", framing.ASK_SIZES, self._answers.sizes)
        if missing := sizes[3].decode():
            raise VmError(
                f"the guest has no {missing[1:].replace('-', ', ')}",
                hint=_TOOLS,
            )
        return self._by_blocks(file, int(sizes["oe".index(file) + 1]))

    def _by_blocks(self, file: str, size: int) -> bytes:
        """Fetch an output in blocks, and return it; split and repeat blocks that arrive damaged."""
        self._type(framing.BLOCKS)
        wanted = framing.blocks_of(file, size)
        have: dict[int, bytes] = {}
        while wanted:
            now, wanted = wanted[:ROUND], wanted[ROUND:]
            start = self._consumed
            self._query("", framing.ask_blocks(now), self._answers.end_of_blocks)
            came = self._blocks(start)
            for block in now:
                data = came.get(block)
                if data is None:
                    wanted += block.parts(size)
                else:
                    have[block.index * block.size] = data
        return b"".join(have[offset] for offset in sorted(have))

    def _blocks(self, start: int) -> dict[Block, bytes | None]:
        """Return the blocks received since `start`; None for a damaged one."""
        return {
            Block(came[1].decode(), int(came[2]), int(came[3])): framing.unpack_block(came[5], came[4])
            for came in self._answers.block.finditer(self._received, start)
        }

    def _interrupt(self) -> None:
        """End the command and the helper."""
        self._line.send(framing.INTERRUPT)
        try:
            self._read_answer(self._answers.gone, "the command to end", deadline=Deadline.after(TERM_SECONDS))
        except DeadlineError:
            self._line.send(framing.INTERRUPT)
            self._read_answer(self._answers.gone, "the command to end", deadline=Deadline.after(TERM_SECONDS))

    def _query(self, lines: str, question: str, answer: re.Pattern[bytes]) -> re.Match[bytes]:
        """Type lines and a request, and return the answer; repeat the request if the answer is damaged."""
        self._type(lines + question)
        return self._read_answer(answer, "the guest's shell to answer", question)

    def _type(self, lines: str) -> None:
        self._line.send(lines)

    def _read_answer(
        self, answer: re.Pattern[bytes], wanted: str, again: str = "", *, deadline: Deadline | None = None
    ) -> re.Match[bytes]:
        """Wait for an answer, and return its match.

        Args:
            answer: Its pattern.
            wanted: What the caller waits for, for the error.
            again: The request to repeat if the answer was damaged.
            deadline: When to give up; by default the command's deadline.
        """
        deadline = deadline or self._deadline
        silence = FIRST_SILENCE
        ask_at = Deadline.after(silence)
        searched = self._consumed
        while not (found := answer.search(self._received, searched)):
            self._check(searched, again)
            # The received text may end within an answer.
            searched = max(searched, len(self._received) - LONGEST_ANSWER)
            if deadline.passed:
                raise self._line.timeout_error(deadline, wanted, hint=_HINTS.get(wanted, ""))
            if ask_at.passed:
                self._probes += 1
                self._type(framing.probe_line(self._token, self._probes))
                silence *= 2
                ask_at = Deadline.after(silence)
            soonest = min(deadline.at, ask_at.at) - time.monotonic()
            if clean := self._filter.feed(self._line.receive(max(0.0, soonest), wanted)):
                self._received += clean
                ask_at = Deadline.after(silence)
        self._consumed = found.end()
        return found

    def _check(self, start: int, again: str) -> None:
        """Look for answers that mean a failure, and repeat the request if a probe finds the helper idle."""
        if self._received.find(self._answers.nowhere, start) >= 0:
            self._consumed = len(self._received)
            raise VmError(
                "the guest has no writable directory",
                hint=f"mount a tmpfs on one of {framing.DIRECTORIES}",
            )
        for lost in self._answers.lost.finditer(self._received, start):
            # Answers to earlier probes may be from before the helper was started.
            if int(lost[1]) == self._probes:
                raise _LostError(f"{self._shown} killed the shell that it ran in", hint=_UNKNOWN)
        for idle in self._answers.idle.finditer(self._received, start):
            if int(idle[1]) == self._probes and self._repeated_at < self._probes:
                self._repeated_at = self._probes
                self._type(again)


_FREE = "the guest's shell to accept a command"
_TOOLS = "exec needs the tools of busybox, or of GNU coreutils and util-linux"
_UNKNOWN = "its exit status and output are lost"
_HANGS = "the console does not react to ^C either: does the guest hang, or has a debugger stopped it?"
_HINTS = {_FREE: "another program may run in the foreground; look at it with `vmdebug console`"}
