"""The VMs of one server, and their sessions: who may use which, and one call at a time on each."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from vmdebug import attach_lock, locks, sources, vm
from vmdebug.channel.shell import Job
from vmdebug.deadline import BUILD_SECONDS, Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import StateError, UsageError, VmdebugError
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report
from vmdebug.session import DebugSession

TURN_SECONDS = 5.0
"""How long a call waits for another call on the same VM. Parallel calls of an agent are short, or wrong."""

CLOSE_SECONDS = 10.0
"""How long GDB, and then QEMU, may take to end with the server."""

CONFINE = "python import vmd_confine; vmd_confine.confine()"
"""The GDB command that takes away what acts on the host."""

_PERMIT = "a person permits VMs that this server has not started: vmdebug mcp --allow-existing"


class AgentSession(DebugSession):
    """A session whose GDB does not let expressions act on the host."""

    @property
    def attached(self) -> Gdb | None:
        """The GDB, if one is attached; `gdb` attaches one."""
        return self._gdb

    def need_running(self, call: str) -> None:
        """Raise if this session's GDB has stopped the guest.

        Raises:
            StateError: it has.
        """
        self._needs_running(call)

    def running_gdb(self) -> Gdb:
        """Return the GDB; if it has to be attached, a guest that ran runs on."""
        if self._gdb is None and self.status == "running":
            self.gdb.resume()
        return self.gdb

    def _attached(self, timeout: float) -> Gdb:
        lock = self.vm.rundir.attach_lock
        held = attach_lock.holder(lock)
        if held.address and locks.is_held(lock, held.pid):
            raise StateError(
                f"a person shares the GDB on {self.name}, and this server needs one of its own",
                hint="they quit it, or detach there",
            )
        gdb = super()._attached(timeout)
        try:
            gdb.console(CONFINE)
        except BaseException:
            gdb.close()
            raise
        return gdb


@dataclass(slots=True)
class Held:
    """A VM of the server.

    Args:
        session: Its session.
        started: Whether the server has started it.
        turn: Held by the call that uses the session.
        doing: The tool of that call.
        jobs: The commands that a breakpoint has stopped, by their number.
    """

    session: AgentSession
    started: bool
    turn: threading.Lock = field(default_factory=threading.Lock)
    doing: str = ""
    jobs: dict[int, Job] = field(default_factory=dict)


class Machines:
    """The VMs of one server; a context manager that ends those that the server has started.

    Args:
        allow_existing: Whether VMs of the user that the server has not started may be used.
    """

    def __init__(self, *, allow_existing: bool = False) -> None:
        self.allow_existing = allow_existing
        self._held: dict[str, Held] = {}
        self._changing = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def start(self, options: GuestOptions, *, report: Report, timeout: float) -> Held:
        """Start a VM, which ends with this process.

        Args:
            options: The guest and its options.
            report: Called with each long step.
            timeout: Seconds to wait for QEMU's answer.

        Raises:
            VmdebugError: see `vmdebug.start`.
        """
        spec = sources.resolve(options, report=report, deadline=Deadline.after(BUILD_SECONDS))
        named = options.name is not None
        machine = vm.launch(spec, bound=True, report=report, timeout=timeout, exact_name=named)
        held = Held(AgentSession(machine, owned=True, force=options.force), started=True)
        with self._changing:
            self._held[machine.name] = held
        return held

    def find(self, name: str | None) -> Held:
        """Return a VM.

        Args:
            name: Its name; None: the only one that may be used.

        Raises:
            UsageError: there is no such VM; or there are several, and no name is given.
            StateError: the server may not use it.
        """
        with self._changing:
            name = self._only() if name is None else name
            if name in self._held:
                return self._held[name]
            machine = vm.find(name)
            if not self.allow_existing:
                raise StateError(f"{name} was not started by this server", hint=f"use `start`; {_PERMIT}")
            held = self._held[name] = Held(AgentSession(machine, owned=False), started=False)
            return held

    @contextlib.contextmanager
    def using(self, name: str | None, tool: str) -> Iterator[Held]:
        """Let one call use a VM's session.

        Args:
            name: See `find`.
            tool: The tool, for the error of another call meanwhile.

        Raises:
            StateError: another call uses it, and does not end soon.
            VmdebugError: see `find`.
        """
        held = self.find(name)
        if not held.turn.acquire(timeout=TURN_SECONDS):
            raise StateError(
                f"{held.session.name} is busy: the call of `{held.doing}` has not ended",
                hint="wait for its result, or cancel it; `interrupt` stops a guest that it waits for",
            )
        try:
            held.doing = tool
            yield held
        finally:
            held.turn.release()

    def every(self) -> list[Held]:
        """Return the VMs that may be used."""
        if self.allow_existing:
            for machine in vm.every():
                with contextlib.suppress(VmdebugError):  # it has ended meanwhile
                    self.find(machine.name)
        with self._changing:
            return list(self._held.values())

    def stop(self, name: str | None) -> str:
        """End a VM that the server has started, and return its name.

        Raises:
            StateError: the server has not started it.
            VmdebugError: see `using`, and `Vm.stop`.
        """
        with self.using(name, "stop") as held:
            name = held.session.name
            if not held.started:
                raise StateError(
                    f"{name} was not started by this server, which does not end it",
                    hint="`detach` leaves it running",
                )
            self._forget(held)
            held.session.close(timeout=CLOSE_SECONDS)
        return name

    def detach(self, name: str | None) -> str:
        """Detach GDB from a VM, which continues to run, and return its name.

        Raises:
            VmdebugError: see `using`.
        """
        with self.using(name, "detach") as held:
            held.session.detach(timeout=CLOSE_SECONDS)
            return held.session.name

    def close(self) -> None:
        """End the VMs that the server has started, and detach from the others."""
        with self._changing:
            every, self._held = list(self._held.values()), {}
        for held in every:
            with contextlib.suppress(VmdebugError):
                if held.turn.acquire(blocking=False):
                    held.session.close(timeout=CLOSE_SECONDS)
                elif held.started:  # the process ends, and with it the call that uses the session
                    held.session.vm.stop(force=True)

    def _forget(self, held: Held) -> None:
        with self._changing:
            self._held.pop(held.session.name, None)

    def _only(self) -> str:
        names = [
            name for name, held in self._held.items() if held.started or held.session.vm.state.qemu.alive()
        ]
        if self.allow_existing:
            names = [*dict.fromkeys((*names, *vm.names()))]
        if not names:
            raise UsageError("no VM runs", hint="start one: `start`")
        if len(names) > 1:
            raise UsageError(f"{len(names)} VMs run: name one of them", hint=f"they are: {', '.join(names)}")
        return names[0]
