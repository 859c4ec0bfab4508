"""What the kernel knows about the sockets of this machine: where they are bound, and who is connected.

See proc(5), and sock_diag(7) for the other end of an AF_UNIX connection, which /proc does not tell.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

_UNIX = Path("/proc/net/unix")
_TCP = Path("/proc/net/tcp")

_CONNECTED = "03"
"""SS_CONNECTED of linux/net.h, as /proc/net/unix prints it."""

_ESTABLISHED = "01"
"""TCP_ESTABLISHED, as /proc/net/tcp prints it."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_PEER = 4
_UNIX_DIAG_PEER = 2
_ANY_COOKIE = _ANY_STATE = 0xFFFFFFFF
_LONGEST_ANSWER = 4096

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE_BYTES = 16
_ATTRIBUTE = struct.Struct("=HH")

ANSWER_SECONDS = 1.0
"""How long the kernel may take to tell the other end of a connection."""


class UnixSocket(msgspec.Struct, frozen=True):
    """A socket that was bound to a path; the file may be removed since.

    Args:
        path: The path.
        inode: The number of the socket, as in /proc/PID/fd.
        connected: Whether it is the end of a connection; otherwise it listens.
    """

    path: str
    inode: int
    connected: bool


def unix_sockets() -> Iterator[UnixSocket]:
    """Yield the sockets with a path in this network namespace."""
    with contextlib.suppress(OSError), _UNIX.open(errors="surrogateescape") as table:
        for line in table:
            *_, state, inode, path = line.rstrip("\n").split(None, 7)
            if path.startswith("/"):
                yield UnixSocket(path, int(inode), state == _CONNECTED)


def clients(endpoint: str) -> list[int]:
    """Return the inodes of the sockets that are connected to a listening socket.

    Args:
        endpoint: The path of an AF_UNIX socket, or 127.0.0.1:PORT.
    """
    if not endpoint.startswith("/"):
        return _tcp_clients(int(endpoint.rpartition(":")[2]))
    ends = [each.inode for each in unix_sockets() if each.connected and each.path == endpoint]
    return [peer for peer in map(_peer, ends) if peer]


def holder(inode: int) -> int:
    """Return the pid of a process that has a socket open; 0 if it cannot be seen."""
    wanted = f"socket:[{inode}]"
    for directory in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            if any(_target(entry) == wanted for entry in entries):
                return int(directory.parent.name)
    return 0


def _target(entry: os.DirEntry[str]) -> str:
    with contextlib.suppress(OSError):  # the descriptor was closed just now
        return str(Path(entry.path).readlink())
    return ""


def _tcp_clients(port: int) -> list[int]:
    server = f"0100007F:{port:04X}"
    found = []
    with contextlib.suppress(OSError):
        for line in _TCP.read_text().splitlines()[1:]:
            words = line.split()
            if words[2] == server and words[3] == _ESTABLISHED:
                found.append(int(words[9]))
    return [inode for inode in found if inode]


def _peer(inode: int) -> int:
    """Return the inode of the other end of a connection; 0 if it is closed, or the kernel does not tell."""
    import socket  # noqa: PLC0415 - slow to import, and most stubs have no client

    request = _REQUEST.pack(
        socket.AF_UNIX, 0, 0, _ANY_STATE, inode, _UDIAG_SHOW_PEER, _ANY_COOKIE, _ANY_COOKIE
    )
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(ANSWER_SECONDS)
            kernel.sendto(header + request, (0, 0))
            return _peer_in(kernel.recv(_LONGEST_ANSWER))
    except OSError:  # a kernel without CONFIG_UNIX_DIAG
        return 0


def _peer_in(answer: bytes) -> int:
    """Return the value of UNIX_DIAG_PEER in an answer of sock_diag(7); 0 if there is none."""
    length, kind, *_ = _HEADER.unpack_from(answer)
    at = _HEADER.size + _MESSAGE_BYTES
    while kind == _SOCK_DIAG_BY_FAMILY and at + _ATTRIBUTE.size <= length:
        size, name = _ATTRIBUTE.unpack_from(answer, at)
        if name == _UNIX_DIAG_PEER:
            return int.from_bytes(answer[at + 4 : at + 8], "little")
        at += max(4, (size + 3) & ~3)
    return 0
