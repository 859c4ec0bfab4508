"""The files in a run directory that describe its VM: frozen values in JSON."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from vmdebug import guest
from vmdebug.errors import VmdebugError
from vmdebug.guest import LaunchSpec
from vmdebug.process import ProcessRef
from vmdebug.vm import runtime_directory

LAYOUT = 1
"""Increase it with every change of `State` that an older vmdebug would misread."""


class Launching(msgspec.Struct, frozen=True, kw_only=True):
    """The processes that start a VM; written first, so that a killed launch can be cleared.

    Args:
        launcher: The process that starts the VM.
        guardian: The process that ends the VM with its owner. It exits when a detached VM runs.
        scratch: Directory outside the run directory to remove with it, or None.
        prewarmed: Whether the VM is prewarmed; see `vmdebug.vm.clones.prewarmed`.
    """

    launcher: ProcessRef
    guardian: ProcessRef
    scratch: Path | None = None
    prewarmed: bool = False


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that was started.

    Args:
        layout: Layout of the file; see `LAYOUT`.
        spec: What was started; its name is the VM's.
        qemu: QEMU's process.
        leader: The leader of QEMU's session: QEMU, or a runner script that did not `exec` it.
        accel: The accelerator that QEMU uses.
        reason: Why that accelerator, in words.
        argv: The command.
        env: The variables added to its environment.
        owner: The process with which the VM ends; None for a detached VM.
        gdb: The argument of GDB's `target remote`: a socket's path, or 127.0.0.1:PORT.
        started_at: When it was started, in seconds since the epoch.
        clone_of: The VM that it is a clone of, or "".
        untraceable: Why QEMU has no plugin for traces, or one that only counts; "" if it has one.
    """

    layout: int = LAYOUT
    spec: LaunchSpec
    qemu: ProcessRef
    leader: ProcessRef
    accel: Literal["kvm", "tcg"]
    reason: str
    argv: tuple[str, ...]
    env: dict[str, str]
    owner: ProcessRef | None
    gdb: str
    started_at: float
    clone_of: str = ""
    untraceable: str = "an older vmdebug started the VM"

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.qemu.pid


class _Layout(msgspec.Struct, frozen=True):
    layout: int


T = TypeVar("T", bound=msgspec.Struct)


def write(path: Path, value: State | Launching) -> None:
    """Write a value atomically.

    Raises:
        HostError: it cannot be written; no file is left.
    """
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(guest.encode(value))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise runtime_directory.host_error(f"write {path}", error) from error


def read_launching(path: Path) -> Launching | None:
    """Return the processes that start a VM; None if the file is missing."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return guest.decode(path.read_bytes(), Launching)
    return None


def read(path: Path) -> State | None:
    """Return a VM's state; None before it is written.

    Raises:
        VmdebugError: the file has another layout, or is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        layout = msgspec.json.decode(data, type=_Layout).layout
        if layout == LAYOUT:
            return guest.decode(data, State)
    except msgspec.MsgspecError as error:
        raise VmdebugError(
            f"{path} is damaged: {error}", hint=f"end its QEMU if it runs, then remove {path.parent}"
        ) from error
    raise VmdebugError(
        f"{path} has layout {layout}, and this vmdebug reads layout {LAYOUT}",
        hint=f"use the vmdebug that started the VM; or end its QEMU and remove {path.parent}",
    )
