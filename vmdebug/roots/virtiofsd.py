"""virtiofsd, which serves a directory of this machine to a guest: whether it works here, and its command.

There are two: QEMU's own, in C, up to 7.2, and the one of the virtio-fs project, in Rust. They are told apart
by the options that their help lists, and tried once, because their sandboxes need what a container may lack.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.guest import Transport

PLACES = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib", "/usr/lib/virtiofsd")
"""Where distributions install it, off PATH."""

Supports = Callable[[str], bool | None]
"""Tells whether the guest's kernel has an option, without CONFIG_; None if that is unknown."""

_TRIAL_SECONDS = 10.0

_READ_ONLY = """\
top=$1
shift
[ "$top" = / ] || mount --rbind "$top" "$top" || exit
while read -r _ _ _ _ place _; do
  place=$(printf %b "$place")
  case ${place%/}/ in
  "${top%/}"/*) mount -o remount,bind,ro "$place" || exit ;;
  esac
done </proc/self/mountinfo
exec "$@"
"""
"""Makes a directory read-only in this mount namespace, with all file systems below it, and runs a program."""


@dataclass(frozen=True, slots=True)
class Server:
    """A virtiofsd.

    Args:
        program: Its path.
        rust: Whether it is the one in Rust.
        read_only: Whether it has an option that forbids the guest to write.
        sandbox: How it confines itself: "namespace", "chroot" or "none".
    """

    program: Path
    rust: bool
    read_only: bool
    sandbox: str = "namespace"

    def argv(self, directory: Path, fd: int, *, read_only: bool) -> tuple[str, ...]:
        """Return the command that serves a directory until its client disconnects.

        Args:
            directory: The directory.
            fd: The descriptor of the listening socket, which it inherits.
            read_only: Whether the guest may only read. For a virtiofsd without such an option, all file
                systems there are read-only in its mount namespace.
        """
        if self.rust:
            words = [f"--shared-dir={directory}", f"--sandbox={self.sandbox}", "--log-level=error"]
        else:
            source = str(directory).replace("\\", "\\\\").replace(",", "\\,")
            words = ["-f", "-o", "log_level=err", "-o", f"sandbox={self.sandbox}", "-o", f"source={source}"]
        command = (str(self.program), f"--fd={fd}", *words)
        if not read_only:
            return command
        if self.read_only:
            return (*command, "--readonly")
        namespace = ("unshare", "--mount", "--propagation", "private")
        return (*namespace, "sh", "-c", _READ_ONLY, "sh", str(directory), *command)


def find(directory: Path, *, read_only: bool) -> Server | None:
    """Return the virtiofsd that works for this user and a directory; None if there is none.

    Args:
        directory: The directory that it is to serve.
        read_only: Whether the guest may only read it.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *PLACES))
    program = shutil.which("virtiofsd", path=path)
    return _tried(Path(program), directory, read_only) if program is not None else None


def choose(supports: Supports, directory: Path, *, read_only: bool) -> Transport:
    """Return how a guest gets a directory: virtiofs where virtiofsd and its kernel have it, else 9p.

    Args:
        supports: Tells whether its kernel has an option.
        directory: The directory.
        read_only: Whether the guest must not write to it.
    """
    found = supports("VIRTIO_FS") and find(directory, read_only=read_only) is not None
    return "virtiofs" if found else "9p"


@functools.lru_cache
def _tried(program: Path, directory: Path, read_only: bool) -> Server | None:
    """Return a virtiofsd with the sandbox that works here; None if none does."""
    deadline = Deadline.after(_TRIAL_SECONDS)
    try:
        done = process.run((program, "--help"), deadline=deadline, check=False)
        text = done.stdout + done.stderr
        if "--shared-dir" not in text and "source=PATH" not in text:
            return None
        server = Server(program, "--shared-dir" in text, "--readonly" in text)
        # For another user than root, the Rust one maps a single user, so all files would have one owner.
        sandboxes = ("namespace", "chroot") if os.geteuid() == 0 else ("none",) if server.rust else ()
        tries = (replace(server, sandbox=sandbox) for sandbox in sandboxes)
        return next((each for each in tries if _works(each, directory, read_only, deadline)), None)
    except VmdebugError:
        return None


def _works(server: Server, directory: Path, read_only: bool, deadline: Deadline) -> bool:
    """Return whether it serves a directory until its client disconnects."""
    with socket.socket(socket.AF_UNIX) as listening:
        # An abstract address, which the kernel chooses; see unix(7).
        listening.bind(b"")
        listening.listen(1)
        argv = server.argv(directory, listening.fileno(), read_only=read_only)
        child = process.start(argv, pass_fds=[listening.fileno()])
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(listening.getsockname())
            return process.ended(child, deadline.left("virtiofsd to end")) and child.wait() == 0
        finally:
            process.end_group(child)
