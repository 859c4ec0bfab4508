"""Run directories: RUNTIME/NAME/ has the sockets, logs and state of a VM; see `runtime_directory`."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

import msgspec

from vmdebug.channel.port import PortAddress, Ways
from vmdebug.errors import HostError, UsageError
from vmdebug.spelling import option

LONGEST_SOCKET_PATH = 107
"""Longest path of a socket in bytes: `sun_path` without its final NUL; see unix(7)."""

SHELL_PORTS = 24
"""Number of commands that can run in a guest at once. Each port takes 0.5 MiB of its memory; a bus has 31."""

SEGMENTS = ".segments"
"""Directory of the network segments in RUNTIME; no VM's name begins with a dot."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""The pattern of VM names and snapshot tags."""

NAME_HINT = "use up to 63 ASCII letters, digits and _ . - that begin with a letter or a digit"


class RunDir(msgspec.Struct, frozen=True):
    """The paths in one VM's run directory; no I/O."""

    path: Path

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.path.name

    @property
    def state(self) -> Path:
        """The file with the VM's `vmdebug.vm.state.State`."""
        return self.path / "state.json"

    @property
    def launching(self) -> Path:
        """The file with its `vmdebug.vm.state.Launching`, written when the directory is made."""
        return self.path / "launch.json"

    @property
    def qmp(self) -> Path:
        """QMP socket for people and other programs."""
        return self.path / "qmp.sock"

    @property
    def control(self) -> Path:
        """QMP socket for vmdebug itself: one connection at a time, under `control_lock`."""
        return self.path / "control.sock"

    @property
    def control_lock(self) -> Path:
        """Locked while `control` is in use."""
        return self.path / "control.lock"

    @property
    def relay(self) -> Path:
        """QMP socket of the process that types into a recorded guest, or wakes one that is replayed."""
        return self.path / "relay.sock"

    @property
    def replay(self) -> Path:
        """The file with the `vmdebug.replaying.Replaying` of a replay."""
        return self.path / "replay.json"

    @property
    def lines(self) -> Path:
        """The file with a replay's lines of the console; see `vmdebug.recording.positions.Line`."""
        return self.path / "lines.json"

    @property
    def gdb(self) -> Path:
        """The gdbstub's socket, unless it is on a TCP port."""
        return self.path / "gdb.sock"

    @property
    def attach_lock(self) -> Path:
        """File that the attached GDB keeps locked; contains its pid."""
        return self.path / "attach.lock"

    @property
    def trace(self) -> Path:
        """The socket of the plugin that collects traces, if QEMU has loaded it."""
        return self.path / "trace.sock"

    @property
    def console(self) -> Path:
        """Socket of the guest's first serial port."""
        return self.path / "console.sock"

    @property
    def console_lock(self) -> Path:
        """File that the client of `console` keeps locked."""
        return self.path / "console.lock"

    @property
    def console_log(self) -> Path:
        """The output of the guest's first serial port; read it with `vmdebug.channel.log.kept`."""
        return self.path / "console.log"

    @property
    def shell_ports(self) -> tuple[PortAddress, ...]:
        """The ports of the agent that runs commands in the guest."""
        return tuple(self._port(f"sh{number:02}") for number in range(1, SHELL_PORTS + 1))

    @property
    def shell_line(self) -> PortAddress:
        """The UART that the agent uses if the guest's kernel has no virtio console."""
        return self._port("shline")

    @property
    def guest_agent(self) -> PortAddress:
        """The port of qemu-guest-agent."""
        return self._port("qga")

    @property
    def ways(self) -> Ways:
        """The host's ends of all ways into the guest."""
        return Ways(
            ports=self.shell_ports,
            uart=self.shell_line,
            guest_agent=self.guest_agent,
            console=PortAddress(self.console, self.console_lock),
            log=self.console_log,
            memory=self.path / "shell.json",
        )

    def _port(self, name: str) -> PortAddress:
        return PortAddress(self.path / f"{name}.sock", self.path / f"{name}.lock")

    def file_server(self, number: int) -> Path:
        """The socket of the virtiofsd that serves a directory; the number is that in `LaunchSpec.shared`."""
        return self.path / f"fs{number}.sock"

    @property
    def qemu_log(self) -> Path:
        """The output of QEMU or the runner script, stdout and stderr."""
        return self.path / "qemu.log"

    @property
    def pidfile(self) -> Path:
        """File with QEMU's pid; QEMU removes it when it ends."""
        return self.path / "qemu.pid"

    @property
    def scratch(self) -> Path:
        """The directory for a runner script's disk, which is too big for XDG_RUNTIME_DIR, a tmpfs.

        Its name differs between VMs of the same name under different RUNTIMEs.
        """
        place = f"{zlib.crc32(os.fsencode(self.path.parent)):08x}"
        return disk_directory().absolute() / f"vmdebug-{os.geteuid()}-{self.name}-{place}"

    def segment(self, name: str) -> Path:
        """Return the socket of the hub of a network segment; see `vmdebug.vm.segment`."""
        return self.path.parent / SEGMENTS / name / "hub.sock"

    def check(self) -> None:
        """Check that sockets can be bound in this directory.

        Raises:
            HostError: a path is too long, or has a newline.
        """
        longest = max((self.control, self.console), key=lambda path: len(os.fsencode(path)))
        length = len(os.fsencode(longest))
        if length > LONGEST_SOCKET_PATH:
            raise HostError(
                f"the path of the socket {longest} has {length} bytes, and must not exceed"
                f" {LONGEST_SOCKET_PATH}",
                hint=f"set XDG_RUNTIME_DIR to a shorter path, or choose a shorter name: {option('name')}",
            )
        if "\n" in str(self.path):
            raise HostError(
                f"the path of the run directory {str(self.path)!r} has a newline",
                hint="set XDG_RUNTIME_DIR to a path without one",
            )


def disk_directory() -> Path:
    """Return the directory for big files: $TMPDIR, or /var/tmp, which unlike /tmp is never RAM."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - files there are private or unnamed


def check_name(name: str) -> None:
    """Check the name of a VM.

    Raises:
        UsageError: it is invalid.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a VM's name",
            hint=NAME_HINT,
        )
