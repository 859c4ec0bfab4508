"""Runs a program of vmdebug in a guest: stores it there, and connects its standard streams."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable

from vmdebug import cache
from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.shell import Job, Streams
from vmdebug.compiler import GuestProgram
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, VmdebugError
from vmdebug.progress import silent
from vmdebug.vm import Vm

_INSTALL = r"""
for directory in /run /tmp /var/tmp /dev/shm /dev / ""; do
	[ -n "$directory" ] || { echo "no directory of the guest takes a program" >&2; exit 1; }
	file=$directory/.%s
	(umask 077; printf '#!/bin/sh\nexit 0\n' >"$file" && chmod 700 "$file" && "$file") 2>/dev/null && break
	rm -f "$file" 2>/dev/null
done
cat >"$file" && echo "$file" || { rm -f "$file"; exit 1; }
"""
"""Stores a program in a directory from which programs run; the program removes its file."""


def shell_for(machine: Vm, what: str, *, timeout: float) -> GuestShell:
    """Return a shell of its own for a program whose streams a thread uses.

    Args:
        machine: The VM.
        what: What needs it, for errors: "a trace".
        timeout: Seconds to wait for the guest.

    Raises:
        StateError: the guest's shell takes and gives only whole files.
        VmdebugError: the guest has no shell that answers.
    """
    # The session's shell may know a debugger, which serves one thread.
    shell = GuestShell(machine.rundir.ways, check=machine.check_running, cause=machine.cause_of_death)
    if shell.wait(Deadline.after(timeout)).largest is not None:
        raise StateError(
            f"the shell of {machine.name} takes and gives only whole files, and {what} needs a stream",
            hint="use a guest with vmdebug's agent",
        )
    return shell


def begin(
    machine: Vm,
    shell: GuestShell,
    program: GuestProgram,
    stdin: int,
    sink: Callable[[bytes], object],
    *,
    timeout: float,
) -> Job:
    """Start a program in the guest, which must remove its own file.

    Args:
        machine: The VM.
        shell: Its shell; see `shell_for`.
        program: The program; the compiler makes it if the wheel does not have it.
        stdin: The descriptor of its standard input.
        sink: Called with its standard output.
        timeout: Seconds for storing and for starting it.

    Raises:
        StateError: the guest cannot store it.
        HostError: there is no C compiler.
        VmdebugError: the guest's shell does not answer.
    """
    deadline = Deadline.after(timeout)
    binary = program.find(
        machine.state.spec.kernel.arch, cache.directory(program.name), report=silent, deadline=deadline
    )
    stored = shell.run(
        _INSTALL.replace("%s", f"{program.name}-{os.urandom(4).hex()}"),
        streams=Streams(stdin=binary.read_bytes()),
        deadline=deadline,
    )
    if stored.status:
        raise StateError(
            f"the guest {machine.name} cannot store {program.what}",
            detail=stored.stderr,
            hint="make /run or /tmp writable there",
        )
    file = shlex.quote(stored.stdout.strip())
    try:
        return shell.begin(f"exec {file}", streams=Streams(stdin=stdin, stdout=sink), deadline=deadline)
    except VmdebugError:
        with contextlib.suppress(VmdebugError):
            shell.run(f"rm -f {file}", streams=Streams(), deadline=Deadline.after(timeout))
        raise
