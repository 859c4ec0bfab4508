"""A private world for the VMs of a soak test, which finds what they leave behind.

Every process in it inherits an environment variable with a unique value. So `World.processes` finds it in
/proc, whatever its parent is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError
from vmdebug.process import ProcessRef

MARK = "VMDEBUG_SOAK"
SETTLE_SECONDS = 20.0
"""How long a guardian may take to clean up after a kill, on a machine under load."""

VERB_SECONDS = 120.0
"""How long a verb may take; longer counts as a hang."""

_OUR_FRAME = re.compile(
    r'Traceback \(most recent call last\):.*File "[^"]*/vmdebug/[^"]*", line \d+, in [^<]', re.DOTALL
)
"""A traceback with a function of vmdebug. Ctrl-C before the first gives another."""

_PROBE = re.compile(r"[a-z0-9_]{8}")
"""The name of a file that `_get_default_tempdir` of Python's `tempfile` makes and removes at once."""

HUNG = 1000
"""The exit status that stands for a hang."""

VMDEBUG = process.find("vmdebug", package="vmdebug")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a verb ended: its exit status, and all that it printed."""

    status: int
    output: str

    @property
    def traceback(self) -> bool:
        """Whether it printed a traceback with frames of vmdebug, not only with those of the user's script."""
        return bool(_OUR_FRAME.search(self.output))


@dataclass(slots=True)
class World:
    """A directory for runtime and temporary files, and the environment that uses it."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def runtime(self) -> Path:
        """$XDG_RUNTIME_DIR."""
        return self.root / "run"

    @property
    def temporary(self) -> Path:
        """$TMPDIR."""
        return self.root / "tmp"

    def run(self, *words: str | Path, seconds: float = VERB_SECONDS) -> Ended:
        """Run vmdebug with these words; one that hangs is killed, and has the status HUNG."""
        program = [VMDEBUG, *words]
        try:
            done = process.run(program, env=self.env, deadline=Deadline.after(seconds), check=False)
        except DeadlineError as error:
            return Ended(HUNG, f"hung: {error.detail}")
        return Ended(done.status, done.stdout + done.stderr)

    def processes(self) -> list[ProcessRef]:
        """Return the live processes of this world, without this one."""
        mark = f"{MARK}={self.env[MARK]}".encode()
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                ours = mark in environ.read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended, or is a zombie
            ref = ProcessRef.of(int(environ.parent.name)) if ours else None
            if ref is not None and ref.pid != os.getpid():
                found.append(ref)
        return found

    def left(self) -> list[str]:
        """Return the processes and files that are left when everything should have ended."""
        end = Deadline.after(SETTLE_SECONDS)
        processes = [
            f"pid {ref.pid} ({_words(ref.pid)})" for ref in self.processes() if not ref.wait(end.remaining)
        ]
        files = [
            str(path) for place in (self.runtime / "vmdebug", self.temporary) for path in _entries(place)
        ]
        return processes + files

    def end(self) -> None:
        """Kill and remove what is left, so that the next round does not count it again."""
        for ref in self.processes():
            ref.signal(signal.SIGKILL)
        for place in (self.runtime, self.temporary):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(mode=0o700)

    @contextmanager
    def full(self, left: int) -> Iterator[None]:
        """During the block, leave only this many bytes free on the world's file system."""
        ballast = self.root / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for piece in (bytes(1 << 20), bytes(4096)):
                with contextlib.suppress(OSError):
                    while file.write(piece):
                        pass
            file.truncate(max(0, file.tell() - left))
        try:
            yield
        finally:
            ballast.unlink()


@contextmanager
def _file_system(root: Path, size: str) -> Iterator[None]:
    deadline = Deadline.after(SETTLE_SECONDS)
    process.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "soak", root], deadline=deadline)
    try:
        yield
    finally:
        # Lazily, because a process that is left may still use it.
        process.run(["umount", "--lazy", root], deadline=Deadline.after(SETTLE_SECONDS))


@contextmanager
def world(size: str = "") -> Iterator[World]:
    """Make a world, and remove it at the end.

    Args:
        size: The size of a file system of its own, as tmpfs(5) takes it; "" for none. Needs a mount namespace
            in which this process is root.
    """
    root = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    with contextlib.ExitStack() as held:
        held.callback(shutil.rmtree, root, ignore_errors=True)
        if size:
            held.enter_context(_file_system(root, size))
        yield held.enter_context(_filled(root))


@contextmanager
def _filled(root: Path) -> Iterator[World]:
    here = World(root)
    here.env = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(here.runtime),
        "TMPDIR": str(here.temporary),
        MARK: secrets.token_hex(8),
    }
    try:
        here.runtime.mkdir(mode=0o700)
        here.temporary.mkdir(mode=0o700)
        yield here
    finally:
        here.end()


def aftermath(here: World) -> list[str]:
    """Use vmdebug as a person would afterwards, end all VMs, and return what is wrong or left."""
    problems = []
    for words in (("status", "--json"), ("stop", "--all", "--force"), ("status", "--json")):
        ended = here.run(*words)
        if ended.status or ended.traceback:
            problems.append(f"`vmdebug {' '.join(words)}` ended with {ended.status}: {ended.output[-300:]}")
    if not problems and json.loads(ended.output):
        problems.append(f"still there after stop --all: {ended.output[:300]}")
    return problems + [f"left: {each}" for each in here.left()]


def _entries(directory: Path) -> list[Path]:
    """Return the content of a directory, without what pytest and Python leave there when they are killed."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in found if not path.name.startswith("pytest-of-") and not _is_probe(path))


def _is_probe(path: Path) -> bool:
    """Whether Python's `tempfile` made this file, to find a directory that it can write to."""
    try:
        return _PROBE.fullmatch(path.name) is not None and path.read_bytes() in (b"", b"blat")
    except OSError:
        return False


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    except OSError:
        return "?"
