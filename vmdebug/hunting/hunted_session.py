"""The session of a hunted guest: without what a hunt cannot give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from vmdebug.errors import UsageError
from vmdebug.hunting.mailbox import Piece
from vmdebug.session import DebugSession
from vmdebug.vm.machine import Vm

_STUB = "the hunt itself uses QEMU's gdbstub"
_STOPPED = "the guest only runs during session.exec, so that each seed gives the same run"
_SAVED = "the guest continues from its saved state in each run"


class NotInHuntError(UsageError):
    """A hunted script uses what a hunt cannot give. It is no failure of the run."""


class HuntedSession(DebugSession):
    """A session for `exec`, `put` and `get`.

    Args:
        vm: The VM, which does not end with the session.
        given: What the guest is given during the session; grows.
        holds: The holds of its CPUs, in words; grows.
    """

    def __init__(self, vm: Vm, *, given: Sequence[Piece] = (), holds: Sequence[str] = ()) -> None:
        super().__init__(vm, owned=False)
        self.given = given
        self.holds = holds

    @property
    def gdb(self) -> NoReturn:
        """Raise: the gdbstub is in use."""
        raise _refused("gdb", _STUB)

    def examined(self, **_: Any) -> NoReturn:
        """Raise: the gdbstub is in use."""
        raise _refused("examined", _STUB)

    def collector(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: who collects a trace changes the run."""
        raise _refused("trace", "what collects a trace changes the run")

    def coverage(self, **_: Any) -> NoReturn:
        """Raise: QEMU has no plugin in a hunt."""
        raise _refused("coverage", "QEMU does not load the plugin in a hunt")

    def profile(self, **_: Any) -> NoReturn:
        """Raise: the sampler changes the run."""
        raise _refused("profile", "its samples change the run")

    def snapshot(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: a run has no snapshots."""
        raise _refused("snapshot", _SAVED)

    def restore(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: a run has no snapshots."""
        raise _refused("restore", _SAVED)

    def restart(self, **_: Any) -> NoReturn:
        """Raise: a run does not boot."""
        raise _refused("restart", _SAVED)


class SteppedSession(HuntedSession):
    """A session whose guest only runs while a command does."""

    @property
    def console(self) -> NoReturn:
        """Raise: nothing that is typed arrives."""
        raise _refused("console", _STOPPED)

    def ssh_config(self, **_: Any) -> NoReturn:
        """Raise: the guest does not answer between commands."""
        raise _refused("ssh_config", _STOPPED)


def _refused(name: str, why: str) -> NotInHuntError:
    return NotInHuntError(
        f"session.{name} cannot be used in a hunt: {why}",
        hint="use session.exec, session.put and session.get; `vmdebug run` has the rest",
    )
