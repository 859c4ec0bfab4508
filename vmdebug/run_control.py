"""Who resumes and stops a guest for a collector: the session's GDB if one is connected, otherwise QMP."""

from __future__ import annotations

import contextlib

from vmdebug.debugger import clients
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.runstate import State
from vmdebug.errors import StateError
from vmdebug.trace.plugin.collector import Guest
from vmdebug.vm import Vm


def is_connected(gdb: Gdb) -> bool:
    """Return whether a GDB holds the guest, or runs it."""
    return gdb.state in (State.STOPPED, State.RUNNING)


def guest_of(machine: Vm, gdb: Gdb | None, timeout: float) -> Guest:
    """Return how a collector runs and stops the guest: by the session's GDB if one is attached.

    Args:
        machine: The VM.
        gdb: The GDB, or None.
        timeout: Seconds for GDB to stop the guest.
    """
    return _VmGuest(machine) if gdb is None else _GdbGuest(gdb, timeout)


class _GdbGuest:
    """A guest that the session's GDB resumes and stops."""

    def __init__(self, gdb: Gdb, timeout: float) -> None:
        self._gdb = gdb
        self._timeout = timeout

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._gdb.state is State.RUNNING

    def resume(self) -> None:
        """Let it run."""
        self._gdb.resume()

    def pause(self) -> None:
        """Stop it."""
        self._gdb.interrupt(timeout=self._timeout)

    def nudge(self) -> None:
        """Stop the running guest for a moment, so that its vCPUs pause."""
        with self._gdb.held(timeout=self._timeout):
            pass


class _VmGuest:
    """A guest that vmdebug resumes and stops with QMP, because the session has no GDB."""

    def __init__(self, machine: Vm) -> None:
        self._vm = machine

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._vm.status() == "running"

    def resume(self) -> None:
        """Let it run."""
        self._check_free()
        self._vm.resume()

    def pause(self) -> None:
        """Stop it."""
        self._check_free()
        self._vm.pause()

    def nudge(self) -> None:
        """Stop the running guest for a moment, so that its vCPUs pause."""
        # If the GDB of another process is attached, `cont` would make it lose packets: do nothing, and wait
        # until a vCPU pauses by itself.
        with contextlib.suppress(StateError):
            self._check_free()
            self._vm.pause()
            self._vm.resume()

    def _check_free(self) -> None:
        clients.check_free(self._vm.state.gdb, self._vm.name)
