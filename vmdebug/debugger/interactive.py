"""Builds the command line of an interactive GDB, and executes it.

GDB replaces this process. It gets everything from its command line, and from `gdbinit/`, which runs inside
it.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from vmdebug import arch, process, shipped
from vmdebug.debugger import clients, demangle, startup
from vmdebug.debugger.ownership import Claim, VmOwner
from vmdebug.errors import HostError
from vmdebug.guest import Kernel


class Extra(msgspec.Struct, frozen=True):
    """One `-x FILE` or `-ex COMMAND` of the user.

    Args:
        kind: "x" or "ex".
        text: The file, or the command.
    """

    kind: Literal["x", "ex"]
    text: str


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """An interactive GDB on a guest.

    Args:
        endpoint: The gdbstub: the path of its socket, or HOST:PORT.
        kernel: The kernel that runs, with its symbols, scripts, modules and sources.
        accel: The accelerator; under KVM early breakpoints must be hardware breakpoints.
        kaslr: Whether the kernel chooses its own address.
        program: GDB, or a program that takes GDB's options, with options of its own.
        extra: The user's files and commands, in the order given.
        batch: Whether GDB runs them and exits; its status is 1 if one of them failed.
        until: The symbol to run to before the user's commands.
        timeout: Seconds that this may take; None for no limit.
        init: Whether GDB reads the user's ~/.gdbinit.
        force: Whether GDB goes on if the symbols are of another build than the kernel.
        before: Further commands to run before GDB loads the vmlinux.
        panicked: Whether the guest is known to have panicked, which QEMU may not know.
        share: Whether scripts may use this GDB as well.
        lock: The inherited descriptor of the claim on the gdbstub; `become` sets it.
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
    panicked: bool = False
    share: bool = False
    lock: int | None = None


def argv(attachment: Attachment) -> tuple[str, ...]:
    """Return GDB's command line.

    Settings come as `-iex`, after the user's ~/.gdbinit and before GDB loads the vmlinux; see "Mode Options"
    and "File Options" in GDB's manual.
    """
    words = [*attachment.program, "-q"]
    if attachment.batch:
        words.append("--batch")
    words += _loading(attachment)
    # In batch mode GDB exits with the status of the last command, whatever failed before it.
    run = "vmd-run " if attachment.batch else ""
    for command in commands(attachment):
        words += ["-ex", f"{run}{command}"]
    if attachment.extra:
        words += ["-ex", startup.LATER]
    for extra in attachment.extra:
        words += _batched(extra) if attachment.batch else (f"-{extra.kind}", extra.text)
    return (*words, "-ex", "vmd-exit") if attachment.batch else tuple(words)


def dap_argv(attachment: Attachment) -> tuple[str, ...]:
    """Return the command line of a GDB that speaks the Debug Adapter Protocol.

    It loads the vmlinux, and does not connect: its client has it execute `commands`, whose errors it then
    gets.
    """
    return (*attachment.program, "-q", "-i=dap", *_loading(attachment))


def attach(attachment: Attachment, *, lock: Path, vm: str) -> NoReturn:
    """Replace this process by a GDB on a VM.

    Args:
        attachment: What to attach to, and how.
        lock: The VM's `attach.lock`.
        vm: The VM's name, for the error.

    Raises:
        StateError: a GDB is attached already, or another program is connected to the gdbstub.
        HostError: there is no GDB.
    """
    find(attachment.program[0])
    with VmOwner.claim(lock, vm, interactive=not attachment.batch) as owner:
        clients.check_free(attachment.endpoint, vm)
        become(attachment, owner)


def to_dump(attachment: Attachment, stub: Sequence[str]) -> NoReturn:
    """Replace this process by a GDB on a dump.

    Args:
        attachment: How; its endpoint is not used.
        stub: The program that serves the dump on its standard input and output, which GDB starts.

    Raises:
        HostError: there is no GDB.
    """
    find(attachment.program[0])
    _replace(msgspec.structs.replace(attachment, endpoint=f"| {shlex.join(stub)}"))


def become(attachment: Attachment, owner: Claim) -> NoReturn:
    """Replace this process by GDB, which inherits the claim on the gdbstub."""
    os.set_inheritable(owner.descriptor, True)
    _replace(msgspec.structs.replace(attachment, lock=owner.descriptor))


def _replace(attachment: Attachment) -> NoReturn:
    # Python ignores these two signals, and execve(2) keeps ignored signals ignored.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    process.replace(argv(attachment), env=startup.environment())


def program(words: str) -> tuple[str, ...]:
    """Return the program of `--gdb` and its options, which are quoted as in a shell."""
    return tuple(shlex.split(words))


def _loading(attachment: Attachment) -> list[str]:
    """Return the options with which GDB makes its settings, loads the vmlinux, and defines our commands."""
    words = [] if attachment.init else ["-nx"]
    for command in _before(attachment):
        words += ["-iex", command]
    vmlinux = attachment.kernel.vmlinux
    if vmlinux is not None:
        style = demangle.style(vmlinux)
        words += ["-iex", f"set {demangle.STYLE} {style}"] * (style != "auto")
        words.append(str(vmlinux))
        # GDB's default again, for modules and for files that the user loads.
        words += ["-ex", f"set {demangle.STYLE} auto"] * (style != "auto")
    words += ["-ex", "set auto-load python-scripts on", "-ex", f"source {shipped.gdbinit() / 'vmdebug.gdb'}"]
    return [*words, "-ex", startup.ADAPT, "-ex", startup.RESTORE_LANGUAGE]


def _before(attachment: Attachment) -> tuple[str, ...]:
    return (
        startup.importing("vmd_load", row=arch.by_name(attachment.kernel.arch)),
        "set debuginfod enabled off",
        "set index-cache enabled on",
        # `vmd-share` needs it, and GDB refuses to set it once connected. It changes nothing at the prompt.
        "set mi-async on",
        f"set remotetimeout {startup.REMOTE_SECONDS}",
        # `vmd-scripts` sources the kernel's scripts, whether or not auto-load safe-path has their directory.
        "set auto-load python-scripts off",
        startup.HOLD_LANGUAGE,
        # A kernel has no `main`, and a backtrace would look for it.
        "set backtrace past-main on",
        # In C; with a vmlinux, GDB would look up the names of new variables and the types of strings.
        *_variables(attachment),
        *attachment.before,
    )


def commands(attachment: Attachment) -> tuple[str, ...]:
    """Return the commands with which GDB connects to the guest, after it has loaded the vmlinux."""
    kernel = attachment.kernel
    commands = ["vmd-share"] if attachment.share else []
    if kernel.gdb_scripts is not None:
        commands.append(f"vmd-scripts --lazy {kernel.gdb_scripts}")
    if kernel.source is not None:
        commands.append(f"vmd-source {kernel.source}")
    commands.append(f"vmd-connect {attachment.endpoint}")
    if kernel.module_files():
        commands.append("vmd-modules --watch" + (" --later" if attachment.until is None else ""))
    if attachment.until is not None:
        seconds = "" if attachment.timeout is None else f" {attachment.timeout:g}"
        commands.append(f"vmd-until {attachment.until}{seconds}")
    return tuple(commands)


def _variables(attachment: Attachment) -> Iterator[str]:
    """Return the commands that set what our commands in GDB read."""
    yield f"set $vmd_batch = {attachment.batch:d}"
    yield f"set $vmd_accel = {_quoted(attachment.accel)}"
    if attachment.kaslr:
        yield "set $vmd_kaslr = 1"
    if attachment.panicked:
        yield "set $vmd_panicked = 1"
    if attachment.until is not None:
        yield f"set $vmd_until = {_quoted(attachment.until)}"
    if attachment.timeout is not None:
        yield f"set $vmd_timeout = {attachment.timeout:g}"
    if attachment.force:
        yield "set $vmd_force = 1"
    if attachment.lock is not None:
        yield f"set $vmd_lock = {attachment.lock}"
    if attachment.kernel.module_files():
        path = ":".join(map(str, attachment.kernel.module_files()))
        yield f"set $vmd_modules_path = {_quoted(path)}"


def _batched(extra: Extra) -> tuple[str, str]:
    command = f"source {extra.text}" if extra.kind == "x" else extra.text
    return "-ex", f"vmd-run {command}"


def _quoted(text: str) -> str:
    """Return a string as a C expression of GDB."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def find(name: str) -> None:
    """Check that GDB is installed.

    Args:
        name: The program of `--gdb`.

    Raises:
        HostError: there is no such program.
    """
    try:
        process.find(name, package="gdb")
    except HostError as error:
        if name == "gdb":
            raise
        raise HostError(error.message, hint="install it, or leave out --gdb") from None
