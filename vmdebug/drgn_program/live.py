"""A program of a running VM.

drgn connects to QMP once, to learn where QEMU has the guest's memory, and then reads QEMU's process: see
`Program.set_qemu_qmp` in drgn's documentation. vmdebug gives it a connection to its own socket for that
moment, so any number of programs can be open at a time. Where one process may not read another (see
ptrace_scope in Documentation/admin-guide/LSM/Yama.rst of the kernel), drgn reads memory by QMP commands, and
needs the socket for people and other programs as long as it is open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import drgn

from vmdebug import locks, process, sockets
from vmdebug.deadline import Deadline
from vmdebug.drgn_program import symbols
from vmdebug.errors import DeadlineError, GuestDiedError, StateError
from vmdebug.vm import Vm, vmcoreinfo


class Opened(NamedTuple):
    """A program, and what to tell the user about it.

    Args:
        program: The program.
        notes: Notes for the user.
    """

    program: drgn.Program
    notes: tuple[str, ...]


def open_program(vm: Vm, *, force: bool = False, timeout: float) -> Opened:
    """Return a program of a VM's kernel, with symbols of vmlinux and modules; it does not stop the guest.

    Args:
        vm: The VM; it may run, be stopped or have panicked.
        force: Whether to go on with symbols of another build.
        timeout: Seconds to connect.

    Raises:
        UsageError: there is no vmlinux with debugging information.
        MismatchError: the kernel is from another build, and `force` is not set.
        StateError: the kernel has not started; or another program uses the socket that drgn needs.
        GuestDiedError: QEMU has ended.
        DeadlineError: QEMU did not answer.
    """
    deadline = Deadline.after(timeout)
    program = drgn.Program()
    _link(program, vm, deadline)
    kernel = vm.state.spec.kernel
    if not program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL and kernel.vmlinux is not None:
        if vm.status(timeout=deadline.left("QEMU to answer")) == "halted":
            raise StateError(
                f"{vm.name} is halted at the reset vector: its kernel has not started",
                hint=f"let it run: vmdebug attach {vm.name} --batch",
            )
        with vm.connected(timeout=deadline.left("QEMU to answer")) as qmp:
            info = vmcoreinfo.read(
                lambda command, **arguments: qmp.execute(command, arguments or None),
                kernel,
                kaslr="nokaslr" not in vm.state.spec.parameters,
                force=force,
            )
        program.set_linux_kernel_custom(info, True)
    return Opened(program, symbols.load(program, kernel, force=force))


def _link(program: drgn.Program, vm: Vm, deadline: Deadline) -> None:
    if _may_read(vm.state.pid):
        what = f"other commands to QEMU of {vm.name} to end"
        with locks.held(vm.rundir.control_lock, what=what, deadline=deadline):
            link = _connected(vm.rundir.control, vm, deadline)
            with link.dup() as same:
                program.set_qemu_qmp(link.detach())  # drgn closes it
                same.shutdown(socket.SHUT_RDWR)
    else:
        program.set_qemu_qmp(_connected(vm.rundir.qmp, vm, deadline).detach())


def _may_read(pid: int) -> bool:
    """Whether this process may read the memory of another one."""
    with contextlib.suppress(OSError):
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
        return True
    return False


def _connected(path: Path, vm: Vm, deadline: Deadline) -> socket.socket:
    """Connect to a QMP socket, and wait for QEMU's greeting: it serves one client at a time."""
    what = f"QEMU of {vm.name} to answer at {path}"
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(deadline.left(what))
        link.connect(str(path))
        link.recv(1, socket.MSG_PEEK)
        # drgn waits in C: a QEMU that hangs must not keep it.
        seconds = int(deadline.left(what)) + 1
        link.settimeout(None)
        for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            link.setsockopt(socket.SOL_SOCKET, direction, struct.pack("ll", seconds, 0))
    except TimeoutError:
        link.close()
        raise _busy(path, what, deadline) from None
    except (FileNotFoundError, ConnectionError) as error:
        link.close()
        raise GuestDiedError(f"QEMU of {vm.name} has ended", hint="start it again") from error
    except BaseException:
        link.close()
        raise
    return link


def _busy(path: Path, what: str, deadline: Deadline) -> StateError | DeadlineError:
    others = [pid for inode in sockets.clients(str(path)) if (pid := sockets.holder(inode)) != os.getpid()]
    if others:
        return StateError(
            f"another program is connected to {path}: {process.describe(others[0])}", hint="end it first"
        )
    return deadline.error(what)
