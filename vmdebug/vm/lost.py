"""VMs that run without their run directory: it was removed at a logout, or by tmpfiles.d(5).

Nobody can connect to their sockets any more. The kernel still knows the paths to which these were bound, so
they are found, and can be ended. Their names stay taken: a QEMU that ends removes its sockets by path, and
would remove those of a second VM of the name.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Literal

import msgspec

from vmdebug import sockets
from vmdebug.errors import StateError
from vmdebug.process import ProcessRef
from vmdebug.vm import runtime_directory
from vmdebug.vm.rundir import RunDir

TERM_SECONDS = 5.0
"""How long QEMU may take to end after SIGTERM."""

KILL_SECONDS = 10.0
"""How long QEMU may take to end after SIGKILL."""

_UNKNOWN = (
    *("accel", "accel_reason", "guest", "kernel", "vmlinux", "build_id", "release", "gdb", "qmp", "console"),
    *("console_log", "owner", "started_at", "clone_of", "net", "shell"),
)
"""Facts of a VM that are in its run directory only."""


class LostVm(msgspec.Struct, frozen=True):
    """A VM whose run directory was removed.

    Args:
        rundir: The directory that it had.
        qemu: Its QEMU.
    """

    rundir: RunDir
    qemu: ProcessRef

    @property
    def name(self) -> str:
        """Its name."""
        return self.rundir.name

    def facts(self) -> dict[str, Any]:
        """Return its object of `status --json`."""
        known = {"name": self.name, "status": "lost", "pid": self.qemu.pid}
        return {**known, "run_directory": str(self.rundir.path), **dict.fromkeys(_UNKNOWN)}

    def error(self) -> StateError:
        """Return the error for a command that needs its sockets."""
        return StateError(
            f"the run directory of {self.name}, {self.rundir.path}, was removed while its QEMU, pid"
            f" {self.qemu.pid}, runs: nothing can connect to it",
            hint=f"end it: vmdebug stop {self.name}",
        )

    def stop(self, *, force: bool = False) -> Literal["SIGTERM", "SIGKILL"]:
        """End QEMU, and remove the scratch directory of a runner.

        Args:
            force: Whether to send SIGKILL at once.

        Returns:
            How it was ended.
        """
        self.qemu.signal(signal.SIGKILL if force else signal.SIGTERM)
        ended = self.qemu.wait(KILL_SECONDS if force else TERM_SECONDS)
        if not ended:
            self.qemu.signal(signal.SIGKILL)
            self.qemu.wait(KILL_SECONDS)
        runtime_directory.remove(self.rundir.scratch)
        return "SIGTERM" if ended and not force else "SIGKILL"


def every() -> tuple[LostVm, ...]:
    """Return the lost VMs of this user, sorted by name."""
    places = {runtime_directory.location(), *runtime_directory.usual_places()}
    directories = {
        Path(each.path).parent: each.inode
        for each in sockets.unix_sockets()
        if not each.connected and Path(each.path).name == "control.sock"
    }
    found = [
        LostVm(RunDir(directory), qemu)
        for directory, inode in sorted(directories.items())
        if directory.parent in places and not os.path.lexists(directory)
        if (qemu := _qemu(RunDir(directory), inode)) is not None
    ]
    return tuple(found)


def of(directory: RunDir) -> LostVm | None:
    """Return the lost VM that had a directory; None if there is none."""
    return next((each for each in every() if each.rundir == directory), None)


def _qemu(directory: RunDir, inode: int) -> ProcessRef | None:
    """Return the process that listens on a socket, if its command line shows that it is that VM's QEMU."""
    pid = sockets.holder(inode)
    found = ProcessRef.of(pid) if pid else None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return found if os.fsencode(directory.pidfile) in words else None
