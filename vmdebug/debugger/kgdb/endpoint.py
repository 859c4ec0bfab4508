"""The endpoint of a machine in kgdb: a serial device, or a port or socket that leads to one.

A device is checked before GDB opens it: GDB waits forever on a serial line without hardware, and does not
notice that another program reads the same line.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import re
import socket
import stat
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
class Endpoint:
    """Where the stub is reached.

    Args:
        kind: A serial device, a TCP port (of a terminal server, of agent-proxy), or a UNIX socket.
        address: As GDB's `target remote` takes it: a path, or HOST:PORT.
    """

    kind: Literal["device", "tcp", "socket"]
    address: str


def parse(words: str) -> Endpoint:
    """Return the endpoint that `--kgdb` names.

    Args:
        words: DEVICE, SOCKET or HOST:PORT.

    Raises:
        UsageError: the words are none of these.
        HostError: there is no such device or socket.
    """
    if _HOST_PORT.fullmatch(words):
        return Endpoint("tcp", words)
    path = Path(words).expanduser().absolute()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _absent(words, path, error) from error
    if stat.S_ISCHR(mode):
        return Endpoint("device", str(path))
    if stat.S_ISSOCK(mode):
        return Endpoint("socket", str(path))
    raise UsageError(
        f"{words} is neither a serial device nor a socket", hint="--kgdb takes DEVICE, SOCKET or HOST:PORT"
    )


@contextlib.contextmanager
def opened(endpoint: Endpoint, baud: int) -> Iterator[int]:
    """Open an endpoint for the block; a device is set to raw mode and to its speed.

    Raises:
        StateError: another program has the device open.
        HostError: it cannot be opened.
    """
    descriptor = _device(endpoint, baud) if endpoint.kind == "device" else _connected(endpoint)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _device(endpoint: Endpoint, baud: int) -> int:
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise UsageError(
            f"a serial line has no speed of {baud} baud", hint="use the speed of kgdboc=ttyS0,115200: 115200"
        )
    users = _users(endpoint.address)
    if users:
        raise StateError(
            f"{endpoint.address} is in use: {users}",
            hint="end that program: two readers take each other's bytes",
        )
    try:
        # Without O_NONBLOCK, open(2) waits for a carrier; see termios(3).
        descriptor = os.open(endpoint.address, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unopened(endpoint, error) from error
    try:
        tty.setraw(descriptor)
        modes = termios.tcgetattr(descriptor)
        modes[4] = modes[5] = speed
        termios.tcsetattr(descriptor, termios.TCSANOW, modes)
    except termios.error as error:
        os.close(descriptor)
        raise HostError(
            f"{endpoint.address} is not a serial line: {error.args[-1]}",
            hint="check that this machine has hardware for that port",
        ) from error
    return descriptor


def _connected(endpoint: Endpoint) -> int:
    try:
        if endpoint.kind == "tcp":
            host, _, port = endpoint.address.rpartition(":")
            connection = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS)
        else:
            with contextlib.ExitStack() as undo:
                connection = undo.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(endpoint.address)
                undo.pop_all()
    except OSError as error:
        raise HostError(
            f"cannot connect to {endpoint.address}: {error.strerror or error}",
            hint="check that the program that has the serial line runs",
        ) from error
    connection.setblocking(False)
    return connection.detach()


def _absent(words: str, path: Path, error: OSError) -> HostError | UsageError:
    if "/" not in words:
        there = f"/dev/{words}" if (Path("/dev") / words).exists() else ""
        hint = f"write {there}" if there else "--kgdb takes DEVICE, SOCKET or HOST:PORT"
        return UsageError(f"{words} is not a serial line", hint=hint)
    present = (str(each) for kind in _KINDS for each in sorted(Path("/dev").glob(f"{kind}*")))
    return HostError(
        f"there is no {path}: {error.strerror}",
        hint=f"serial lines of this machine: {', '.join(present) or 'none'}",
    )


def _unopened(endpoint: Endpoint, error: OSError) -> HostError | StateError:
    message = f"{endpoint.address} cannot be opened: {error.strerror}"
    if error.errno == errno.EBUSY:
        return StateError(message, hint="another program has opened it exclusively: end that one")
    if error.errno not in (errno.EACCES, errno.EPERM):
        return HostError(message, hint="check that this machine has hardware for that port")
    group = "dialout"
    with contextlib.suppress(OSError, KeyError):
        group = grp.getgrgid(Path(endpoint.address).stat().st_gid).gr_name
    return HostError(message, hint=f"join its group and log in again: sudo usermod -aG {group} $USER")


def _users(device: str) -> str:
    """Return the processes that have a device open, of those that this user may see."""
    real = os.path.realpath(device)
    found: dict[str, str] = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) == real:
                process = link.parent.parent
                found[process.name] = (process / "comm").read_text().strip()
    return ", ".join(f"pid {pid} ({name})" for pid, name in found.items())


def closed(endpoint: Endpoint, why: str | None) -> VmError:
    """Return the error for a connection that has ended."""
    return VmError(f"the line {endpoint.address} was closed: {why}", hint="check the machine and its cable")
