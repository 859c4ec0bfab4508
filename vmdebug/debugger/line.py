"""The line to another machine's stub: a serial device, or what stands for one.

A device is looked at before GDB gets it, since GDB waits for ever for a line without hardware, and
shares one with whoever reads it already.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import os
import re
import socket
import stat
import struct
import termios
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmdebug.errors import HostError, StateError, UsageError, VmError

_CONNECT_SECONDS = 10.0
_KINDS = ("ttyUSB", "ttyACM", "ttyS")

_HOST_PORT = re.compile(r"(?P<host>[^\s/:]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Line:
    """What leads to the stub.

    Args:
        kind: A serial device, a TCP port (of a terminal server, of agent-proxy), or a UNIX socket.
        endpoint: As GDB's `target remote` takes it: a path, or HOST:PORT.
    """

    kind: Literal["device", "tcp", "socket"]
    endpoint: str


def parse(words: str) -> Line:
    """Return what `--kgdb` names.

    Args:
        words: DEVICE, SOCKET or HOST:PORT.

    Raises:
        UsageError: it is none of them.
        HostError: there is no such device or socket.
    """
    if _HOST_PORT.fullmatch(words):
        return Line("tcp", words)
    path = Path(words).expanduser().absolute()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _absent(words, path, error) from error
    if stat.S_ISCHR(mode):
        return Line("device", str(path))
    if stat.S_ISSOCK(mode):
        return Line("socket", str(path))
    raise UsageError(
        f"{words} is neither a serial device nor a socket", hint="--kgdb takes DEVICE, SOCKET or HOST:PORT"
    )


def hold(line: Line) -> int:
    """Return the descriptor that says who is attached, for as long as it is open.

    It is a socket in the abstract namespace (unix(7)): nothing is left when its owner ends, however
    it ends, and who connects to it is told the owner's pid.

    Raises:
        StateError: a GDB is attached already.
    """
    real = line.endpoint if line.kind == "tcp" else os.path.realpath(line.endpoint)
    name = f"\0vmdebug-kgdb-{os.getuid()}-{hashlib.sha256(real.encode()).hexdigest()[:16]}"
    with contextlib.ExitStack() as undo:
        held = undo.enter_context(socket.socket(socket.AF_UNIX))
        try:
            held.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise _taken(line, _owner(name)) from None
        held.listen(1)
        undo.pop_all()
    return held.detach()


@contextlib.contextmanager
def opened(line: Line, baud: int) -> Iterator[int]:
    """Open a line for the block; a device is set to raw bytes at its speed.

    Raises:
        StateError: another program has the device open.
        HostError: it cannot be opened.
    """
    descriptor = _device(line, baud) if line.kind == "device" else _connected(line)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _device(line: Line, baud: int) -> int:
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise UsageError(
            f"a serial line has no speed of {baud} baud", hint="kgdboc=…,115200 goes with 115200"
        )
    users = _users(line.endpoint)
    if users:
        raise StateError(
            f"{line.endpoint} is in use: {users}", hint="two readers take each other's bytes: end that one"
        )
    try:
        # A line without a carrier would be waited for: see O_NONBLOCK in termios(3).
        descriptor = os.open(line.endpoint, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unopened(line, error) from error
    try:
        tty.setraw(descriptor)
        modes = termios.tcgetattr(descriptor)
        modes[4] = modes[5] = speed
        termios.tcsetattr(descriptor, termios.TCSANOW, modes)
    except termios.error as error:
        os.close(descriptor)
        raise HostError(
            f"{line.endpoint} is no serial line: {error.args[-1]}", hint="is there hardware behind it?"
        ) from error
    return descriptor


def _connected(line: Line) -> int:
    try:
        if line.kind == "tcp":
            host, _, port = line.endpoint.rpartition(":")
            connection = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS)
        else:
            with contextlib.ExitStack() as undo:
                connection = undo.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(line.endpoint)
                undo.pop_all()
    except OSError as error:
        raise HostError(
            f"cannot connect to {line.endpoint}: {error.strerror or error}",
            hint="is the program that has the serial line running?",
        ) from error
    connection.setblocking(False)
    return connection.detach()


def _absent(words: str, path: Path, error: OSError) -> HostError | UsageError:
    if "/" not in words:
        there = f"/dev/{words}" if (Path("/dev") / words).exists() else ""
        hint = f"write {there}" if there else "--kgdb takes DEVICE, SOCKET or HOST:PORT"
        return UsageError(f"{words} is no serial line", hint=hint)
    present = (str(each) for kind in _KINDS for each in sorted(Path("/dev").glob(f"{kind}*")))
    return HostError(
        f"there is no {path}: {error.strerror}",
        hint=f"serial lines of this machine: {', '.join(present) or 'none'}",
    )


def _unopened(line: Line, error: OSError) -> HostError | StateError:
    message = f"{line.endpoint} cannot be opened: {error.strerror}"
    if error.errno == errno.EBUSY:
        return StateError(message, hint="another program keeps it for itself")
    if error.errno not in (errno.EACCES, errno.EPERM):
        return HostError(message, hint="is there hardware behind it?")
    group = "dialout"
    with contextlib.suppress(OSError, KeyError):
        group = grp.getgrgid(Path(line.endpoint).stat().st_gid).gr_name
    return HostError(message, hint=f"join its group and log in again: sudo usermod -aG {group} $USER")


def _users(device: str) -> str:
    """Return who has a device open, as far as may be seen."""
    real = os.path.realpath(device)
    found: dict[str, str] = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) == real:
                process = link.parent.parent
                found[process.name] = (process / "comm").read_text().strip()
    return ", ".join(f"pid {pid} ({name})" for pid, name in found.items())


def _owner(name: str) -> int:
    """Return the pid of who listens at an abstract socket; see SO_PEERCRED in unix(7)."""
    with socket.socket(socket.AF_UNIX) as asking, contextlib.suppress(OSError):
        asking.setblocking(False)
        asking.connect(name)
        pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)
    return 0


def _taken(line: Line, pid: int) -> StateError:
    return StateError(
        f"a GDB is attached at {line.endpoint} already: pid {pid or 'unknown'}",
        hint=f"quit it there, or end it with: kill {pid}" if pid else "quit it first",
    )


def closed(line: Line, why: str | None) -> VmError:
    """Return the error for a line that has an end."""
    return VmError(
        f"the line {line.endpoint} was closed: {why}", hint="does the machine, or its cable, live?"
    )
