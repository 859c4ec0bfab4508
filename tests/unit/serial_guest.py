"""A guest's serial line without a guest: a real shell on a pseudo-terminal, behind a socket as QEMU's.

One client at a time, a log of all that is said, and kernel messages wherever a test wants them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import select
import signal
import socket
import tempfile
import threading
import tty
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hypothesis import strategies as st

from vmdebug import process
from vmdebug.channel.serial.console import Console
from vmdebug.channel.serial.line import SerialLine

CHUNK = 65536

END, GO, SAY, STOP, CONTINUE = b"e", b"g", b"s", b"z", b"c"
"""Orders to the thread that carries."""

PROGRAMS = (
    "base64",
    "cat",
    "dd",
    "echo",
    "gzip",
    "head",
    "ls",
    "md5sum",
    "rm",
    "setsid",
    "sh",
    "sleep",
    "wc",
    "yes",
)

COLOURFUL = r"\[\e]0;\u@\h: \w\a\]\[\e[1;31m\][\u@\h:\w]\$\[\e[0m\] "
"""A prompt as NixOS has it."""

KINDS = ("busybox", "bash", "dash")
"""Of shells, each with its own `sh`; busybox with its own tools as well."""


@contextlib.contextmanager
def shell_guest(kind: str, *, without: Collection[str] = (), **env: str) -> Iterator[SerialGuest]:
    """A serial line with an interactive shell, in a directory short enough for a socket.

    Args:
        kind: One of `KINDS`.
        without: Programs that it lacks; busybox' shell has them all in itself.
        **env: Changes to its environment.
    """
    with tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as name:
        programs = Path(name, "bin")
        programs.mkdir()
        shell = process.find(kind, package=kind)
        if kind == "busybox":
            for program in PROGRAMS:
                (programs / program).symlink_to(shell)
            argv = (str(shell), "ash", "-i")
            path = str(programs)
        else:
            (programs / "sh").symlink_to(shell)
            argv = (str(shell), *(("--norc", "--noprofile") if kind == "bash" else ()), "-i")
            for program in {*PROGRAMS} - {"sh", *without}:
                (programs / program).symlink_to(process.find(program, package="coreutils"))
            path = str(programs) if without else f"{programs}:{os.environ['PATH']}"
        looks = {"TERM": "xterm", "PS1": COLOURFUL} if kind == "bash" else {"TERM": "dumb"}
        with SerialGuest(Path(name), argv, {"PATH": path, **looks, **env}) as guest:
            yield guest


kernel_lines = st.builds(
    lambda stamp, caller, text: b"[%12.6f]%b " % (stamp, caller) + text + b"\r\n",
    st.floats(0, 99999),
    st.sampled_from([b"", b"[    T1]", b"[   C0]"]),
    st.text("abc [](){}:;*'\"$\\~_#.=/+09", max_size=60).map(str.encode),
) | st.just(b"** 17 printk messages dropped **\r\n")


class SerialGuest:
    """The line, as a context manager.

    Args:
        directory: Where its socket, lock and log go.
        argv: The interactive shell; none, and nobody reads the line.
        env: Its environment.
        raw: Whether the terminal is raw from the start, so that no byte is a signal: the agent reads a line
            that is not its controlling terminal, and a random nonce may hold ^C or ^\\.
    """

    def __init__(
        self,
        directory: Path,
        argv: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        *,
        raw: bool = False,
    ) -> None:
        self.directory = directory
        self.temporary = directory / "tmp"
        self.typed = b""
        self.interfere: Callable[[bytes], bytes] = bytes
        """What the line does to what the shell says."""
        self._argv = argv
        self._raw = raw
        self._env = {
            "HOME": str(directory),
            "HISTFILE": "/dev/null",
            "TMPDIR": str(self.temporary),
            **(env or {}),
        }
        self._held = contextlib.ExitStack()
        self._client: socket.socket | None = None
        self._changed = threading.Condition()
        self._to_shell = bytearray()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as held:
            self.temporary.mkdir()
            self._log = held.enter_context((self.directory / "log").open("ab", buffering=0))
            self._listener = held.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(str(self.directory / "sock"))
            self._listener.listen()
            # What is written to it wakes the thread, which ends at its end.
            self._orders, self._order = held.enter_context(_pipe())
            # Closing the master hangs the terminal up, which ends the shell: only then it is waited for.
            after_hangup = held.enter_context(contextlib.ExitStack())
            self._master, slave = held.enter_context(_terminal())
            os.set_blocking(self._master, False)
            if self._raw:
                tty.setraw(slave)
            if self._argv:
                setsid = str(process.find("setsid", package="util-linux"))
                argv = (setsid, "--wait", "--ctty", *self._argv)
                child = process.start(argv, env=self._env, stdin=slave, stdout=slave, stderr=slave)
                after_hangup.callback(self._end_left)
                after_hangup.callback(process.end_group, child)
                after_hangup.callback(child.wait, timeout=20)
            thread = threading.Thread(target=self._carry)
            thread.start()
            held.callback(thread.join)
            held.callback(os.write, self._order, END)
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def console(self, **options: Any) -> Console:
        """Return a client."""
        place = self.directory
        return Console(SerialLine(place / "sock", place / "lock", place / "log", **options))

    def say(self, text: bytes) -> None:
        """Say something as the kernel would."""
        os.write(self._order, SAY + b"%d\n%b" % (len(text), text))

    def leave(self) -> None:
        """Go away, as a QEMU that ends; what was said before is said."""
        os.write(self._order, GO)

    def stop(self) -> None:
        """Say nothing and take nothing, as a guest that is stopped."""
        os.write(self._order, STOP)

    def go_on(self) -> None:
        """Go on after `stop`."""
        os.write(self._order, CONTINUE)

    def wait_typed(self, text: bytes) -> None:
        """Wait until something has been typed."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.typed, timeout=20)

    def left_over(self) -> list[str]:
        """Return the temporary files that are there."""
        return sorted(path.name for path in self.temporary.iterdir())

    def _end_left(self) -> None:
        """End what the shell's commands have left running, in sessions of their own."""
        mark = f"TMPDIR={self.temporary}".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in environ.read_bytes().split(b"\0"):
                    os.kill(int(environ.parent.name), signal.SIGKILL)

    def _carry(self) -> None:
        poll = select.poll()
        for fd in (self._master, self._listener.fileno(), self._orders):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, event in poll.poll():
                if fd == self._orders:
                    order = os.read(self._orders, 1)
                    if order == END:
                        self._hang_up(poll)
                        return
                    self._obey(order, poll)
                elif fd == self._master:
                    self._at_master(event, poll)
                elif fd == self._listener.fileno():
                    self._client = self._listener.accept()[0]
                    poll.register(self._client, select.POLLIN)
                    poll.unregister(self._listener)
                else:
                    self._hear(poll)

    def _obey(self, order: bytes, poll: select.poll) -> None:
        if order == GO:
            self._hang_up(poll)
            return
        if order == STOP:
            poll.unregister(self._master)
            if self._client is not None:
                poll.unregister(self._client)
            return
        if order == CONTINUE:
            poll.register(self._master, select.POLLIN)
            if self._client is not None:
                poll.register(self._client, select.POLLIN)
            return
        size = b""
        while (digit := os.read(self._orders, 1)) != b"\n":
            size += digit
        self._said(os.read(self._orders, int(size)))

    def _said(self, data: bytes) -> None:
        self._log.write(data)
        if self._client is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._client.sendall(data)

    def _hear(self, poll: select.poll) -> None:
        if self._client is None:
            return  # hung up meanwhile
        data = b""
        # A client that goes with something unread resets the connection.
        with contextlib.suppress(ConnectionResetError):
            data = self._client.recv(CHUNK)
        if not data:
            self._hang_up(poll)
            poll.register(self._listener, select.POLLIN)
            return
        with self._changed:
            self.typed += data
            self._changed.notify_all()
        if self._argv:
            self._to_shell += data
            poll.register(self._master, select.POLLIN | select.POLLOUT)

    def _at_master(self, event: int, poll: select.poll) -> None:
        """Carry what can be carried; who does not read what is said to it may still speak."""
        if event & select.POLLOUT:
            with contextlib.suppress(BlockingIOError):
                del self._to_shell[: os.write(self._master, self._to_shell[:CHUNK])]
            if not self._to_shell:
                poll.register(self._master, select.POLLIN)
        if event & ~select.POLLOUT:
            self._said(self.interfere(os.read(self._master, CHUNK)))

    def _hang_up(self, poll: select.poll) -> None:
        if self._client is not None:
            with contextlib.suppress(KeyError):  # a guest that is stopped does not look at it
                poll.unregister(self._client)
            self._client.close()
            self._client = None


def between(gaps: Iterable[int], lines: Iterable[bytes]) -> Callable[[bytes], bytes]:
    """Return what inserts a kernel message after each gap, in bytes of what the shell says.

    After the last gap the line is quiet.
    """
    messages = itertools.cycle(lines)
    left = iter(gaps)
    gap = next(left, None)

    def interfere(data: bytes) -> bytes:
        nonlocal gap
        out = b""
        while gap is not None and gap <= len(data):
            out += data[:gap] + next(messages)
            data = data[gap:]
            gap = next(left, None)
        if gap is not None:
            gap -= len(data)
        return out + data

    return interfere


@contextlib.contextmanager
def line_guest(log: bytes = b"") -> Iterator[SerialGuest]:
    """A serial line that nobody reads but the test, with something in its log."""
    with tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as name, SerialGuest(Path(name)) as guest:
        (guest.directory / "log").write_bytes(log)
        yield guest


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        os.close(read)
        os.close(write)


@contextlib.contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    # The slave stays open, so that a read of the master waits when no process has it open.
    master, slave = pty.openpty()
    try:
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)
