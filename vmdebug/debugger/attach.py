"""A person's GDB on a running VM: its command line, and who is attached.

The command line is the whole of it: GDB replaces this process, and what it needs
from vmdebug runs inside it (`gdbinit/`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from vmdebug import arch, process, shipped
from vmdebug.debugger import mangled, prelude
from vmdebug.errors import HostError, StateError
from vmdebug.guest import Kernel

REMOTE_SECONDS = 30
"""How long GDB waits for one answer of QEMU's; its own 2 s are too few on a loaded host."""

PERSON = "a person's"
"""What `attach.lock` says of a GDB at whose prompt somebody sits."""


@dataclass(frozen=True, slots=True)
class Extra:
    """One `-x FILE` or `-ex COMMAND` of the user's.

    Args:
        kind: Which of the two.
        text: The file, or the command.
    """

    kind: Literal["x", "ex"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A person's GDB on a running VM.

    Args:
        endpoint: The gdbstub: the path of its socket, or HOST:PORT.
        kernel: What runs, with its symbols, scripts, modules and sources.
        accel: What QEMU runs it with; under KVM early breakpoints must be hardware ones.
        kaslr: Whether the kernel chooses its own address.
        program: GDB, or a program that takes GDB's options, with options of its own.
        extra: The user's files and commands, in the order given.
        batch: Run them and end, with a status that tells whether all went well.
        until: Where to run to before anything else.
        timeout: Seconds that this may take; None is for ever.
        init: Whether the user's own ~/.gdbinit is read.
        force: Go on when vmlinux and guest do not belong together.
        before: What else is set before the user's ~/.gdbinit is read.
        share: Let scripts use this GDB as well.
        lock: The inherited descriptor that says who is attached; made by `attach`.
    """

    endpoint: str
    kernel: Kernel
    accel: Literal["kvm", "tcg"] = "tcg"
    kaslr: bool = False
    program: tuple[str, ...] = ("gdb",)
    extra: tuple[Extra, ...] = ()
    batch: bool = False
    until: str | None = None
    timeout: float | None = None
    init: bool = True
    force: bool = False
    before: tuple[str, ...] = ()
    share: bool = False
    lock: int | None = None


def argv(attachment: Attachment) -> tuple[str, ...]:
    """Return GDB's command line.

    What must be so before the user's ~/.gdbinit is read comes as `-iex`, so that it can
    still be changed there; see "Mode Options" and "File Options" in GDB's manual.
    """
    words = [*attachment.program, "-q"]
    if attachment.batch:
        words.append("--batch")
    if not attachment.init:
        words.append("-nx")
    for command in _before(attachment):
        words += ["-iex", command]
    vmlinux = attachment.kernel.vmlinux
    if vmlinux is not None:
        plain = not mangled.found(vmlinux)
        words += ["-iex", f"set {mangled.STYLE} none"] * plain
        words.append(str(vmlinux))
        # For modules, and what its user loads.
        words += ["-ex", f"set {mangled.STYLE} auto"] * plain
    words += ["-ex", "set auto-load python-scripts on", "-ex", f"source {shipped.gdbinit() / 'vmdebug.gdb'}"]
    # GDB's own batch mode ends with the status of the last command, whatever failed before it.
    run = "vmd-run " if attachment.batch else ""
    for command in _ours(attachment):
        words += ["-ex", f"{run}{command}"]
    for extra in attachment.extra:
        words += _batched(extra) if attachment.batch else (f"-{extra.kind}", extra.text)
    return (*words, "-ex", "vmd-exit") if attachment.batch else tuple(words)


def attach(attachment: Attachment, *, lock: Path, vm: str) -> NoReturn:
    """Become GDB.

    Args:
        attachment: What to attach to, and how.
        lock: The VM's `attach.lock`.
        vm: The VM's name, for messages.

    Raises:
        StateError: a GDB is attached already.
        HostError: GDB is not there.
    """
    find(attachment.program[0])
    descriptor = _hold(lock, vm, kind=PERSON)
    become(attachment, descriptor)


def become(attachment: Attachment, descriptor: int) -> NoReturn:
    """Become GDB, with the descriptor that says who is attached, as `attach` does for a VM."""
    # Python ignores these two, and an ignored signal stays ignored in what it becomes.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.set_inheritable(descriptor, True)
    process.replace(argv(dataclasses.replace(attachment, lock=descriptor)))


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Say that this process is attached, until the end of the block.

    Args:
        lock: The VM's `attach.lock`; it holds the pid of who is attached.

    Raises:
        StateError: a GDB is attached already.
    """
    descriptor = _hold(lock, lock.parent.name)
    try:
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who is attached, or was last.

    Args:
        pid: Their process id; 0 where it isn't known.
        person: Whether it is a person's GDB, that is not shared.
        address: Where scripts ask to be let in, an abstract socket's name; "" where nobody is.
    """

    pid: int = 0
    person: bool = False
    address: str = ""


def holder(lock: Path) -> Holder:
    """Return who wrote a VM's `attach.lock` last; that they have it still is not said."""
    try:
        pid, _, kind = lock.read_text().partition("\n")
        kind = kind.strip()
        return Holder(int(pid), kind == PERSON, kind[1:] if kind.startswith("@") else "")
    except (OSError, ValueError):
        return Holder()


def program(words: str) -> tuple[str, ...]:
    """Return what `--gdb` names: a program, and options of its own, quoted as in a shell."""
    return tuple(shlex.split(words))


def _before(attachment: Attachment) -> tuple[str, ...]:
    return (
        prelude.importing("vmd_load", row=arch.by_name(attachment.kernel.arch)),
        "set debuginfod enabled off",
        "set index-cache enabled on",
        # It changes nothing at the prompt, and cannot be set later, should `vmd-share` be wanted.
        "set mi-async on",
        f"set remotetimeout {REMOTE_SECONDS}",
        # The kernel's scripts are sourced below, whatever auto-load safe-path says of their directory.
        "set auto-load python-scripts off",
        f"set $vmd_batch = {attachment.batch:d}",
        *attachment.before,
    )


def _ours(attachment: Attachment) -> tuple[str, ...]:
    kernel = attachment.kernel
    commands = [f"set $vmd_accel = {_quoted(attachment.accel)}"]
    if attachment.kaslr:
        commands.append("set $vmd_kaslr = 1")
    if attachment.force:
        commands.append("set $vmd_force = 1")
    if attachment.lock is not None:
        commands.append(f"set $vmd_lock = {attachment.lock}")
    if attachment.share:
        commands.append("vmd-share")
    if kernel.modules is not None:
        commands.append(f"set $vmd_modules_path = {_quoted(str(kernel.modules))}")
    if kernel.gdb_scripts is not None:
        commands.append(f"vmd-scripts {kernel.gdb_scripts}")
    if kernel.source is not None:
        commands.append(f"vmd-source {kernel.source}")
    commands.append(f"vmd-connect {attachment.endpoint}")
    if kernel.modules is not None:
        commands.append("vmd-modules --watch")
    if attachment.until is not None:
        seconds = "" if attachment.timeout is None else f" {attachment.timeout:g}"
        commands.append(f"vmd-until {attachment.until}{seconds}")
    return tuple(commands)


def _batched(extra: Extra) -> tuple[str, str]:
    command = f"source {extra.text}" if extra.kind == "x" else extra.text
    return "-ex", f"vmd-run {command}"


def _hold(lock: Path, vm: str, *, kind: str = "") -> int:
    """Return the descriptor that has the lock.

    The lock belongs to it: it goes with GDB through execve(2), and by itself when GDB
    ends, however it ends; see flock(2).
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _taken(vm, holder(lock)) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{kind}".encode(), 0)
    return descriptor


def _quoted(text: str) -> str:
    """Return a string as GDB's C expressions write it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def find(name: str) -> None:
    """Make sure that GDB is there.

    Args:
        name: The program, as given by `--gdb`.

    Raises:
        HostError: it is not.
    """
    try:
        process.find(name, package="gdb")
    except HostError as error:
        if name == "gdb":
            raise
        raise HostError(error.message, hint="install it, or leave out --gdb") from None


def _taken(vm: str, by: Holder) -> StateError:
    name = ""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{by.pid}/comm").read_text().strip()
    who = f"pid {by.pid} ({name})" if name else f"pid {by.pid or 'unknown'}"
    share = "share it by typing `vmd-share` there, or by `attach --share`; or " if by.person else ""
    return StateError(
        f"a GDB is attached to {vm} already: {who}",
        hint=f"{share}quit it there, or end it with: kill {by.pid}" if by.pid else "quit it first",
    )
