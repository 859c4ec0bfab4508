"""What `vmdebug attach --kgdb` does: a GDB on a machine that is no VM."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vmdebug.cli import options
from vmdebug.deadline import BUILD_SECONDS, Deadline
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.debugger.interactive import Attachment
    from vmdebug.debugger.kgdb.endpoint import Endpoint
    from vmdebug.guest import Kernel

Words = Annotated[
    str | None,
    typer.Option(
        "--kgdb", metavar="DEVICE|HOST:PORT|SOCKET", help="A machine that is no VM: its serial line."
    ),
]
Baud = Annotated[int | None, typer.Option(metavar="N", min=1, help="--kgdb: a device's speed, else 115200.")]
Guest = Annotated[
    str | None, typer.Option(metavar="GUEST", help="--kgdb: what the machine runs, as `start` takes it.")
]
TargetHost = Annotated[
    str | None, typer.Option(metavar="USER@HOST", help="--kgdb: what `deploy` brought there, instead.")
]
Modules = Annotated[
    bool,
    typer.Option("--modules/--no-modules", help="--kgdb: read the modules, some 4 KB each over the line."),
]

BATCH_SECONDS = 60.0
"""How long a batch waits for the machine to come into kgdb, unless --timeout says otherwise."""

FOR_EVER = 1e9
"""Seconds that a person may wait; they have Ctrl-C."""


def refuse(*, name: str | None, until: str | None, timeout: float | None, share: bool) -> None:
    """Make sure that nothing is asked of kgdb that it cannot do.

    Raises:
        UsageError: it is.
    """
    if name is not None:
        raise UsageError(f"--kgdb is for a machine, and {name} names a VM", hint="leave one of them out")
    if share:
        raise UsageError("--share is for a VM, and --kgdb for a machine", hint="leave one of them out")
    if until is not None and timeout is not None:
        hint = "leave one of them out: with --kgdb, --timeout is for the machine to come into kgdb"
        raise UsageError(
            "nobody can stop a machine that kgdb has let run, after --timeout or ever", hint=hint
        )


def refuse_without(*, baud: int | None, guest: str | None, target_host: str | None) -> None:
    """Make sure that nothing is said about a machine without --kgdb.

    Raises:
        UsageError: it is.
    """
    given = {"--baud": baud, "--guest": guest, "--target-host": target_host}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} is for --kgdb", hint="`vmdebug attach NAME` takes a VM by its name")


def kernel_of(
    guest: str | None, target_host: str | None, nix_args: tuple[str, ...] | None, *, modules: bool
) -> Kernel:
    """Return the kernel that the machine runs: that of GUEST, or the one that `deploy` brought there.

    Raises:
        UsageError: neither is known.
        VmdebugError: what resolving a guest raises.
    """
    import msgspec

    from vmdebug import sources
    from vmdebug.cli import render
    from vmdebug.sources.nixos import deployments

    if guest is None:
        kernel = deployments.find(target_host).kernel
    else:
        wanted = options.given(guest, nix_args=nix_args)
        with render.progress() as report:
            kernel = sources.installed_kernel(wanted, report=report, deadline=Deadline.after(BUILD_SECONDS))
    return kernel if modules else msgspec.structs.replace(kernel, modules=None)


def attach(words: str, baud: int | None, attachment: Attachment) -> NoReturn:
    """Become GDB on the machine at the end of a line.

    Args:
        words: DEVICE, SOCKET or HOST:PORT.
        baud: Of a device; None takes the usual.
        attachment: The rest; its endpoint is made here, and its time is for the machine to come into kgdb.
    """
    from vmdebug.cli import render
    from vmdebug.debugger import interactive
    from vmdebug.debugger.kgdb import endpoint, stub
    from vmdebug.debugger.kgdb.owner import KgdbOwner

    speed = stub.BAUD if baud is None else baud
    where = endpoint.parse(words)
    seconds = attachment.timeout or (BATCH_SECONDS if attachment.batch else FOR_EVER)
    full = dataclasses.replace(
        attachment, endpoint=where.address, before=stub.settings(where, speed), timeout=None
    )
    interactive.find(attachment.program[0])
    if not attachment.batch:
        _tell(full.kernel, where, speed)
    with KgdbOwner.claim(where) as owner:
        with render.progress() as report:
            stub.wait(where, speed, timeout=seconds, report=report)
        interactive.become(full, owner)


def _tell(kernel: Kernel, where: Endpoint, baud: int) -> None:
    from vmdebug.cli import render

    speed = f", {baud} baud" if where.kind == "device" else ""
    render.tell_facts(
        {
            "kgdb": f"{where.address}{speed}",
            "kernel": f"{kernel.release or kernel.image}, of {kernel.origin}",
            "symbols": str(kernel.vmlinux or "none"),
            "": "The machine stands still while GDB has it; `detach` and `quit` let it run on.\n"
            "Ctrl-C does not reach a kernel that runs, unless the line is its console. To stop it, on the\n"
            "machine: echo g > /proc/sysrq-trigger",
        }
    )
