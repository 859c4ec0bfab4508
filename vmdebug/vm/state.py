"""What a run directory says about its VM, as frozen values in JSON."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from vmdebug import guest
from vmdebug.errors import VmdebugError
from vmdebug.guest import LaunchSpec
from vmdebug.process import ProcessRef
from vmdebug.vm import rundir

LAYOUT = 1
"""Raised with every change to `State` that an older reader would misread."""


class Launching(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes a VM; written before anything else, so that a launch cut short can be cleared.

    Args:
        launcher: The process that starts it.
        guardian: The process that ends it with its owner; gone once a detached VM runs.
        scratch: Directory outside the run directory that goes with it, or None.
        prewarmed: Whether it is made before somebody needs it: see `vmdebug.vm.clones.prewarmed`.
    """

    launcher: ProcessRef
    guardian: ProcessRef
    scratch: Path | None = None
    prewarmed: bool = False


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that was started.

    Args:
        layout: Of this file; see `LAYOUT`.
        spec: What was to be started; its name is the VM's.
        qemu: QEMU's process.
        leader: What was started: QEMU, or a runner script that did not `exec` it. It leads their session.
        accel: The accelerator that QEMU uses.
        reason: Why that one, in words.
        argv: The command as it was started.
        env: What was added to its environment.
        owner: The process that the VM dies with; None for a detached one.
        gdb: What `target remote` takes: a socket's path, or 127.0.0.1:PORT.
        started_at: When, in seconds since the epoch.
        clone_of: The VM whose memory it began with, or "".
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

    @property
    def name(self) -> str:
        """What the VM is called."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.qemu.pid


class _Layout(msgspec.Struct, frozen=True):
    layout: int


T = TypeVar("T", bound=msgspec.Struct)


def write(path: Path, value: State | Launching) -> None:
    """Write a value so that a reader sees all of it or nothing.

    Raises:
        HostError: there is no space, or it cannot be written; nothing is left.
    """
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(guest.encode(value))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise rundir.host_error(f"write {path}", error) from error


def read_launching(path: Path) -> Launching | None:
    """Return who makes a VM; None where that was not written."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return guest.decode(path.read_bytes(), Launching)
    return None


def read(path: Path) -> State | None:
    """Return a VM's state; None while there is none.

    Raises:
        VmdebugError: the file is of another layout, or damaged.
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
        f"{path} is of layout {layout}, and this vmdebug reads layout {LAYOUT}",
        hint=f"use the vmdebug that started the VM; or end its QEMU and remove {path.parent}",
    )
