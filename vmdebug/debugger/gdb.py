"""One GDB on one guest: how it is started, gets its symbols, and takes hold of the guest and lets go.

What it can be asked is in `inspection`, running and stopping in `control`, breakpoints in `planting`.

GDB runs the guest in all-stop mode with `mi-async`: one stop stops every CPU, and
GDB answers while the guest runs, though most of what touches the guest needs it stopped.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from vmdebug import process
from vmdebug.arch import Arch
from vmdebug.deadline import Deadline
from vmdebug.debugger import mangled, mi, prelude, transport
from vmdebug.debugger.control import STOP_SECONDS
from vmdebug.debugger.identity import Identity, Verdict, Wanted
from vmdebug.debugger.planting import Planting
from vmdebug.debugger.runstate import RunState, State
from vmdebug.debugger.stop import Stop
from vmdebug.debugger.transport import Transport
from vmdebug.errors import DeadlineError, GdbError, HostError, UsageError, VmdebugError
from vmdebug.spelling import option

REMOTE_SECONDS = 30
"""How long GDB waits for one answer of QEMU's; its own 2 s are too few on a loaded host."""

_SETTINGS = (
    "mi-async on",  # before connecting: without it GDB answers nothing at all while the guest runs
    f"remotetimeout {REMOTE_SECONDS}",
    "tcp auto-retry off",  # QEMU listens before it says that it has started: refused is refused
    "dcache line-size 512",  # a frame's part of the stack in one read, where 64 bytes take several
)


class Gdb(Planting):
    """One GDB process; a context manager that detaches from the guest and ends GDB.

    Made by `start`.
    """

    @classmethod
    def start(
        cls,
        vmlinux: Path | None,
        scripts: Path | None = None,
        *,
        deadline: Deadline,
        program: str = "gdb",
        row: Arch | None = None,
    ) -> Self:
        """Start GDB with a kernel's symbols, not yet connected to a guest.

        Args:
            vmlinux: The ELF file with symbols; None goes without.
            scripts: Directory with `vmlinux-gdb.py` beside `scripts/gdb`, or None. When they fail, that
                is put into `notes`.
            deadline: For loading the symbols: about a second for 100 MB.
            program: GDB's name or path.
            row: The guest's architecture; None leaves it to GDB, which goes by its vmlinux.

        Raises:
            HostError: there is no GDB, or one that is too old or has no Python.
            UsageError: GDB cannot read `vmlinux`; the message has its words.
            DeadlineError: it took too long.
        """
        # GDB's words are matched in places: they are to be English whatever the user speaks.
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        beside = prelude.importing("vmd_mi", "vmd_scripts", row=row)
        argv = [*transport.argv(process.find(program, package="gdb")), "-iex", beside]
        state = RunState()
        gdb = cls(Transport.start(argv, state, env=env), state)
        try:
            gdb._set_up(deadline)
            if vmlinux is not None:
                gdb._load(vmlinux, deadline)
            gdb._define(deadline)  # imported meanwhile
            if scripts is not None:
                gdb._source(scripts, deadline)
        except BaseException:
            gdb.close()
            raise
        return gdb

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """GDB's process id."""
        return self._transport.pid

    @property
    def identity(self) -> Verdict | None:
        """What is known of the kernel in guest memory, and how far KASLR has moved it; None: nobody asked."""
        return None if self._identity is None else self._identity.verdict

    def connect(
        self,
        endpoint: str | os.PathLike[str],
        *,
        deadline: Deadline,
        interrupter: Callable[[], None] | None = None,
        wanted: Wanted | None = None,
    ) -> Stop:
        """Attach to a guest, which stops it, and prove that its kernel is that of the symbols.

        Args:
            endpoint: Path of QEMU's gdbstub socket, or HOST:PORT.
            deadline: When to give up.
            interrupter: Stops the running guest from outside, such as QMP's `stop`, which QEMU reports to
                GDB as SIGINT; None has GDB itself do it.
            wanted: What the symbols are to be proven for, now or, where the guest has not mapped its kernel
                yet, as soon as it has; None proves nothing.

        Returns:
            Where the guest stood.

        Raises:
            StateError: it is connected already.
            MismatchError: the kernel in its memory is of another build.
            GdbError: nobody answers there.
            DeadlineError: it took too long.
        """
        self._need("connect", State.UNCONNECTED, State.DETACHED, State.GONE)
        self._interrupter = interrupter
        self._identity = None if wanted is None else Identity(wanted, self.notes.append)
        state = self._run_state
        try:
            self._execute(f"-target-select remote {mi.bare(os.fspath(endpoint))}", deadline)
            self._transport.wait(lambda: state.unseen, deadline, f"the guest at {endpoint} to stop")
        except DeadlineError as error:
            hint = "QEMU serves one GDB at a time: is another one attached?"
            raise DeadlineError(error.message, hint=hint, detail=error.detail) from error
        state.need("connect", State.STOPPED)
        where = self._taken_stop()
        if wanted is not None:
            self._modules = wanted.kernel.modules
        if self._modules is not None and self._identity is not None and not self._identity.open:
            self.load_modules()
        return where

    def reload(self, vmlinux: Path, *, deadline: Deadline) -> None:
        """Load a kernel's symbols in the place of those there are, between two guests; breakpoints follow.

        Args:
            vmlinux: The ELF file with symbols.
            deadline: For loading them.

        Raises:
            StateError: a guest is connected.
            UsageError: GDB cannot read it.
        """
        self._need("reload", State.UNCONNECTED, State.DETACHED, State.GONE)
        self._load(vmlinux, deadline)

    def detach(self, *, timeout: float = STOP_SECONDS) -> None:
        """Let go of the guest: breakpoints come out, and it runs on.

        Args:
            timeout: Seconds.

        Raises:
            StateError: GDB isn't attached.
            DeadlineError: the guest did not stop for it.
        """
        self._need("detach", State.STOPPED, State.RUNNING)
        deadline = Deadline.after(timeout)
        if self.state is State.RUNNING:
            self._interrupt(deadline)
        self._free_steps(deadline)
        with self._run_state.letting_go():
            self._execute("-target-detach", deadline)

    def close(self, *, timeout: float = STOP_SECONDS) -> None:
        """Detach and end GDB, by force where it does not go; nothing happens the second time.

        Args:
            timeout: Seconds until force.
        """
        deadline = Deadline.after(timeout)
        try:
            if self.state in (State.STOPPED, State.RUNNING):
                with contextlib.suppress(VmdebugError):
                    self.detach(timeout=timeout / 2)
        finally:
            self._transport.close(deadline)
            if self._bell >= 0:
                os.close(self._bell)
                self._bell = -1

    def _set_up(self, deadline: Deadline) -> None:
        with _usable():
            for setting in _SETTINGS:
                self._execute(f"-gdb-set {setting}", deadline)

    def _define(self, deadline: Deadline) -> None:
        script = "python import vmd_mi; vmd_mi.define()"
        with _usable():
            self._execute(f"-interpreter-exec console {mi.quote(script)}", deadline)

    def _load(self, vmlinux: Path, deadline: Deadline) -> None:
        # GDB splits at blanks and takes quotes away, as a shell does.
        quoted = re.sub(r"([\s\"'\\])", r"\\\1", str(vmlinux))
        try:
            style = "auto" if mangled.found(vmlinux) else "none"
            self._execute(f"-gdb-set {mangled.STYLE} {style}", deadline)
            self._execute(f"-file-exec-and-symbols {quoted}", deadline)
            self._execute(f"-gdb-set {mangled.STYLE} auto", deadline)  # for modules, and what a person loads
        except GdbError as error:
            raise UsageError(
                f"GDB cannot read the symbols in {vmlinux}: {error.words or error.message}",
                hint="give the kernel's vmlinux, an ELF file with debug information:"
                f" {option('vmlinux', 'FILE')}",
            ) from error

    def _source(self, scripts: Path, deadline: Deadline) -> None:
        for command in ("python import vmd_scripts; vmd_scripts.Scripts()", f"vmd-scripts {scripts}"):
            answer = self._execute(f"-interpreter-exec console {mi.quote(command)}", deadline)
            self.notes.extend(answer.log.splitlines())


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Say of what GDB refuses in the block that it is not the GDB for us."""
    try:
        yield
    except GdbError as error:
        raise HostError(
            f"this GDB cannot be used: {error.words or error.message}",
            hint="vmdebug needs GDB 12 or newer with Python: apt install gdb",
            detail=error.detail,
        ) from error
