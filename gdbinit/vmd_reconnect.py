"""Connects to a VM again after `vmdebug restart`: with new symbols and the same breakpoints."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
from pathlib import Path
from typing import Any

import gdb
import vmd_batch
import vmd_modules

_GONE = " (deleted)"


class Reconnect(gdb.Command):
    """Connect to a VM that was restarted: vmd-reconnect [RUN-DIRECTORY].

    Loads the VM's vmlinux, sets every breakpoint again by its name or line, and checks that the
    symbols match the running kernel. Without an argument, uses the VM that `vmdebug attach` named.

    Example: vmd-reconnect
    """

    NAME = "vmd-reconnect"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Lock the VM, load its symbols, connect."""
        directory = Path(argument).expanduser() if argument else _directory()
        state = _state(directory)
        lock = _take(directory / "attach.lock")
        with contextlib.suppress(gdb.error), gdb.with_parameter("confirm", False):
            gdb.execute("disconnect", to_string=True)
        _forget_modules()
        kernel = state["spec"]["kernel"]
        gdb.set_convenience_variable("vmd_accel", state["accel"])
        gdb.set_convenience_variable("vmd_lock", lock)
        if kernel["vmlinux"]:
            _load(kernel["vmlinux"])
        gdb.execute(f"vmd-connect {state['gdb']}")
        vmd_batch.say(f"connected to {state['spec']['name']}: build-id {kernel['build_id'] or 'none'}")


def _directory() -> Path:
    """Return the VM's run directory: the one that holds the lock file of this GDB."""
    lock = gdb.convenience_variable("vmd_lock")
    if lock is None:
        vmd_batch.fail(
            "vmd-reconnect: this GDB was not started by vmdebug attach, so the VM is unknown\n"
            "give its run directory: vmd-reconnect DIRECTORY",
            vmd_batch.USAGE,
        )
    path = Path(f"/proc/self/fd/{int(lock)}").readlink()
    return Path(str(path).removesuffix(_GONE)).parent


def _state(directory: Path) -> dict[str, Any]:
    import json  # noqa: PLC0415 - needed only after a restart

    try:
        state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    except (OSError, ValueError) as error:
        vmd_batch.fail(f"no VM in {directory}: {error}\nstart it: vmdebug restart, or vmdebug start")
    return state


def _take(path: Path) -> int:
    """Take the lock for the attached GDB, as `vmdebug attach` does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(descriptor, 32, 0).decode().strip()
        os.close(descriptor)
        vmd_batch.fail(f"another GDB is attached to it: pid {pid or 'unknown'}\nquit it there first")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    before = gdb.convenience_variable("vmd_lock")
    if before is not None:
        with contextlib.suppress(OSError):
            os.close(int(before))
    return descriptor


def _forget_modules() -> None:
    """Remove the symbols of modules, whose files may have been rebuilt, and the breakpoint for new ones."""
    for module in vmd_modules.SYMBOLS.placed.values():
        with contextlib.suppress(gdb.error), gdb.with_parameter("confirm", False):
            gdb.execute(f"remove-symbol-file -a {module.address:#x}", to_string=True)
    vmd_modules.SYMBOLS.placed.clear()
    vmd_modules.SYMBOLS.errors.clear()
    vmd_modules.SYMBOLS.files = None
    vmd_modules.WATCH.forget()


def _load(vmlinux: str) -> None:
    with gdb.with_parameter("confirm", False), gdb.with_parameter("auto-load python-scripts", False):
        gdb.execute(f"file {shlex.quote(vmlinux)}", to_string=True)
