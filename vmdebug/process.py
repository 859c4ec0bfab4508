"""Starts, signals and reaps processes; no other module does.

Processes are started from an argv, never through a shell. The caller either waits for the process here, or
keeps a `ProcessRef`, which stays correct when the kernel reuses the pid.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import IO, NamedTuple, NoReturn, TypeAlias

from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import BuildError, HostError

PIPE = subprocess.PIPE
"""A stream of the started program becomes a pipe to the caller."""

Child: TypeAlias = subprocess.Popen[bytes]
"""A process that we started and have to reap."""

TERM_SECONDS = 5.0
"""Seconds between SIGTERM and SIGKILL."""

TAIL_LINES = 20
"""Number of output lines in an error."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The exit status (negative for a signal) and the output of a finished process."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process, identified by pid and start time, so that a later process with the same pid is another one.

    Args:
        pid: Process id.
        started: Field 22 of /proc/PID/stat, in clock ticks since boot; see proc(5).
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef | None:
        """Return the process that has `pid` now; None if there is none."""
        stat = _stat(pid)
        return None if stat is None else cls(pid, stat.started)

    @classmethod
    def me(cls) -> ProcessRef:
        """Return this process."""
        me = cls.of(os.getpid())
        assert me is not None  # noqa: S101 - /proc has an entry for this process as long as it runs
        return me

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        stat = _stat(self.pid)
        if stat is None or stat.started != self.started:
            return False
        # The first thread of a killed process can be a zombie while others still hold its files.
        return stat.state not in "ZX" or stat.threads > 1

    def signal(self, number: Signals) -> None:
        """Send it a signal; do nothing if it has ended."""
        with self._pidfd() as fd:
            if fd is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)

    def signal_group(self, number: Signals) -> None:
        """Send a signal to the processes that remain of the group that it led.

        A group can outlive its leader; the kernel does not reuse the leader's pid until the group has ended.
        """
        if ProcessRef.of(self.pid) in (None, self):
            _signal_group(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for it to end, and return whether it has.

        See pidfd_open(2): the descriptor becomes readable when the process ends.
        """
        with self._pidfd() as fd:
            return fd is None or bool(wait_ready(fd, seconds=seconds))

    @contextlib.contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        try:
            fd = os.pidfd_open(self.pid)
        except OSError as error:
            # EINVAL: the process is just being reaped, and no thread group has that number any more.
            if error.errno not in (errno.ESRCH, errno.EINVAL):
                raise
            yield None
            return
        try:
            # Check after opening: from here on the descriptor refers to this process.
            yield fd if self.alive() else None
        finally:
            os.close(fd)


class _Stat(NamedTuple):
    state: str
    threads: int
    started: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in field 2 may contain blanks and parentheses: count from the last parenthesis.
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], threads=int(fields[17]), started=int(fields[19]))


def describe(pid: int) -> str:
    """Return a process in words: its pid and, if it can be read, its name."""
    with contextlib.suppress(OSError):
        return f"pid {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return f"pid {pid}"


def find(program: str, *, package: str) -> Path:
    """Return the absolute path of `program` on PATH.

    Args:
        program: Its name, or a path to it.
        package: Its Debian package, for the hint.

    Raises:
        HostError: it is not there.
    """
    found = shutil.which(program)
    if found is None:
        raise HostError(
            f"{program} is not on PATH",
            hint=f"install it: apt install {package}  (`vmdebug doctor` lists everything that is missing)",
        )
    return Path(found).absolute()


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    deadline: Deadline,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a program and wait for its end.

    Args:
        argv: Program and arguments.
        deadline: When to kill it, with everything that it has started.
        env: Its complete environment; None: that of this process.
        cwd: Its working directory; None: that of this process.
        stdin: Its standard input.
        check: Whether an exit status other than 0 raises.
        on_line: Called with each line of both outputs as it arrives, by one thread at a time.

    Raises:
        HostError: the program cannot be started.
        BuildError: it failed, and `check` is true; the detail has the end of its output.
        DeadlineError: the deadline passed, and it was killed.
    """
    with spawn(
        argv, env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        collected = _Pump(child, stdin, on_line)
        what = f"`{Path(argv[0]).name}` to end"
        if not ended(child, deadline.left(what)):
            raise deadline.error(what, detail=shlex.join(map(str, argv)))
        status = child.wait()
        stdout, stderr = collected.join()
    done = Completed(tuple(map(str, argv)), status, stdout, stderr)
    if check and status != 0:
        raise BuildError(
            f"`{Path(argv[0]).name}` ended with status {status}",
            detail=f"{shlex.join(done.argv)}\n{tail(stderr or stdout)}",
        )
    return done


@contextlib.contextmanager
def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> Iterator[Child]:
    """Start a program for the duration of a block, then end its process group and reap it.

    Raises:
        HostError: the program cannot be started.
    """
    child = start(argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
    try:
        yield child
    finally:
        end_group(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def start(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    session: bool = False,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start a program in its own process group; the caller owns it.

    Args:
        argv: Program and arguments.
        env: Its complete environment; None: that of this process.
        cwd: Its working directory; None: that of this process.
        stdin: As for `subprocess.Popen`.
        stdout: As for `subprocess.Popen`.
        stderr: As for `subprocess.Popen`.
        session: Whether it gets its own session, so that closing the terminal does not affect it.
        pass_fds: Descriptors that it inherits, with the same numbers.

    Raises:
        HostError: the program cannot be started.
    """
    try:
        return subprocess.Popen(
            [os.fspath(word) for word in argv],
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=session,
            # setsid(2) also makes a process group, and setpgid(2) fails after it.
            process_group=None if session else 0,
            pass_fds=pass_fds,
        )
    except OSError as error:
        raise HostError(
            f"cannot start {argv[0]}: {error.strerror}",
            hint="does it exist, is it executable, and built for this machine?",
        ) from error


def end_group(child: Child) -> None:
    """End a started program and its process group, first with SIGTERM, then with SIGKILL, and reap it."""
    if child.poll() is None:
        _signal_group(child.pid, signal.SIGTERM)
        ended(child, TERM_SECONDS)
    # The leader may have ended and left other processes of the group.
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()


def replace(argv: Sequence[str | os.PathLike[str]], *, env: Mapping[str, str] | None = None) -> NoReturn:
    """Replace this process by another program; see execve(2).

    Raises:
        HostError: the program cannot be started.
    """
    words = [os.fspath(word) for word in argv]
    try:
        os.execvpe(words[0], words, dict(os.environ if env is None else env))  # noqa: S606 - this is the place
    except OSError as error:
        raise HostError(f"cannot start {words[0]}: {error.strerror}") from error


def shell_line(argv: Sequence[str | os.PathLike[str]], env: Mapping[str, str] | None = None) -> str:
    """Return the command in a form to paste into a shell: assignments, then one option on each line."""
    words = [f"{key}={shlex.quote(value)}" for key, value in (env or {}).items()]
    words += [shlex.quote(os.fspath(word)) for word in argv]
    lines: list[str] = []
    for word in words:
        # An option's value goes on the option's line.
        if lines and not word.startswith("-") and lines[-1].startswith("-") and " " not in lines[-1]:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n  ".join(lines)


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def ended(child: Child, seconds: float) -> bool:
    """Wait for a child that is not reaped yet, and return whether it has ended; `Popen.wait` polls.

    Args:
        child: The child.
        seconds: How long to wait.
    """
    fd = os.pidfd_open(child.pid)
    try:
        return bool(wait_ready(fd, seconds=seconds))
    finally:
        os.close(fd)


def _signal_group(pgid: int, number: Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)


class _Pump:
    """Serves a child's three streams at once, so that no full pipe blocks it."""

    def __init__(self, child: Child, stdin: bytes, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._one_at_a_time = threading.Lock()
        self._stdout: list[str] = []
        self._stderr: list[str] = []
        self._threads = [
            threading.Thread(target=self._feed, args=(child.stdin, stdin), daemon=True),
            threading.Thread(target=self._drain, args=(child.stdout, self._stdout), daemon=True),
            threading.Thread(target=self._drain, args=(child.stderr, self._stderr), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> tuple[str, str]:
        # A daemon that the program has started may keep its pipes open forever.
        for thread in self._threads:
            thread.join(TERM_SECONDS)
        return "".join(self._stdout), "".join(self._stderr)

    def _feed(self, pipe: IO[bytes], data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.write(data)
        with contextlib.suppress(BrokenPipeError):
            pipe.close()

    def _drain(self, pipe: IO[bytes], into: list[str]) -> None:
        with contextlib.suppress(ValueError):  # closed at the end of the block
            for raw in pipe:
                line = raw.decode(errors="replace")
                into.append(line)
                if self._on_line is not None:
                    with self._one_at_a_time:
                        self._on_line(line.rstrip("\n"))
