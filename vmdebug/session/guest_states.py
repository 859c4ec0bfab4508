"""`snapshot` and `restore` of a session; `position` and `goto` of one that replays a recording."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from vmdebug import replaying
from vmdebug.channel.serial.console import Console
from vmdebug.debugger.gdb import Gdb
from vmdebug.recording.positions import Position
from vmdebug.replaying import SEEK_SECONDS
from vmdebug.vm import Vm
from vmdebug.vm.machine import SNAPSHOT_SECONDS

if TYPE_CHECKING:
    from vmdebug.drgn_program.live import Opened


class GuestStates:
    """States of a session's guest, saved or recorded, and the ways back to them."""

    vm: Vm

    _gdb: Gdb | None

    _console: Console | None

    _drgn: Opened | None
    """See `DrgnAccess`."""

    def snapshot(self, tag: str, *, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Take a snapshot. Afterwards the guest runs or is stopped, as before.

        Args:
            tag: The snapshot's name.
            timeout: Seconds until QEMU has written it. An attached GDB may take as long to stop the guest.

        Raises:
            UsageError: the tag is invalid, or is taken.
            StateError: the guest is recorded, or replays a recording.
            HostError: this QEMU cannot take snapshots.
            VmError: this guest cannot be saved: a 9p share is mounted, a disk is not qcow2.
            DeadlineError: the guest did not stop, or QEMU did not finish.
        """
        with self._held(timeout):
            self.vm.snapshot(tag, timeout=timeout)

    def restore(self, tag: str, *, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Load a snapshot. Afterwards a running guest continues, and a stopped one stays stopped.

        Breakpoints stay set. Frames of earlier stops become invalid.

        Args:
            tag: The snapshot's name.
            timeout: Seconds until QEMU has loaded it. An attached GDB may take as long to stop the guest.

        Raises:
            UsageError: there is no such snapshot; the hint lists the existing ones.
            StateError: the guest is recorded, or replays a recording.
            VmError: QEMU cannot load it.
            DeadlineError: the guest did not stop, or QEMU did not finish.
        """
        with self._held(timeout):
            self.vm.restore(tag, run=self._gdb is None, timeout=timeout)
            if self._console is not None:
                self._console.line.restored()
            self.vm.shell.forget()
            self._drgn = None  # other modules may be loaded
            if self._gdb is not None:
                self._gdb.replaced()

    @property
    def recording(self) -> Path | None:
        """The directory of the recording that is made of the guest, or that it replays, or None."""
        replayed = replaying.of(self.vm)
        return self.vm.state.spec.record if replayed is None else replayed.recording

    @property
    def position(self) -> Position:
        """Where a replay is: instruction count, the guest's time, and the number of lines on the console.

        Raises:
            StateError: the VM is no replay.
            DeadlineError: QEMU does not answer.
        """
        return replaying.position(self.vm)

    def goto(self, to: int | str, *, timeout: float = SEEK_SECONDS) -> Position:
        """Go to a position of a replay, forward or back; breakpoints do not stop the guest on the way.

        Args:
            to: An instruction count; or `start`, `end`, `failure`, a time such as `2.5s`, or a text on the
                console.
            timeout: Seconds to get there.

        Raises:
            UsageError: there is no such position.
            StateError: the VM is no replay.
            DeadlineError: it took too long.
        """
        if self._gdb is None:
            return replaying.goto(self.vm, to, timeout=timeout)
        with self._gdb.held(timeout=timeout):
            self._gdb.goto(replaying.icount_of(self.vm, to), timeout=timeout)
        return self.position

    def _held(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """Return a context in which an attached GDB keeps the guest stopped.

        Then the memory to save or load contains no breakpoint of GDB, and only GDB resumes the guest.
        """
        return contextlib.nullcontext() if self._gdb is None else self._gdb.held(timeout=timeout)
