"""`vmdebug attach --kgdb`: runs GDB on a physical machine."""

from __future__ import annotations

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
        "--kgdb", metavar="DEVICE|HOST:PORT|SOCKET", help="Debug a physical machine over this serial line."
    ),
]
Baud = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="--kgdb: speed of the device; 115200 by default.")
]
Guest = Annotated[
    str | None,
    typer.Option(
        metavar="GUEST", help="--kgdb: the guest whose kernel the machine runs, as `start` takes it."
    ),
]
TargetHost = Annotated[
    str | None, typer.Option(metavar="USER@HOST", help="--kgdb: the machine that `deploy` installed.")
]
Modules = Annotated[
    bool,
    typer.Option(
        "--modules/--no-modules",
        help="--kgdb: load the symbols of modules; reads 4 KB for each module over the line.",
    ),
]

BATCH_SECONDS = 60.0
"""How long a batch waits until the machine enters kgdb, unless --timeout is given."""

NO_LIMIT_SECONDS = 1e9
"""Seconds without a limit: an interactive user has Ctrl-C."""


def check_options(*, name: str | None, until: str | None, timeout: float | None, share: bool) -> None:
    """Refuse options that kgdb does not support.

    Raises:
        UsageError: one is given.
    """
    if name is not None:
        raise UsageError(f"--kgdb debugs a machine, and {name} is a VM", hint="give only one of them")
    if share:
        raise UsageError("--share works with VMs only, and --kgdb debugs a machine", hint="leave out --share")
    if until is not None and timeout is not None:
        hint = "give only one of them; with --kgdb, --timeout limits the wait for the machine to enter kgdb"
        raise UsageError(
            "--until has no timeout with --kgdb: GDB cannot stop a machine that kgdb has resumed", hint=hint
        )


def refuse_without(*, baud: int | None, guest: str | None, target_host: str | None) -> None:
    """Refuse options that only work with --kgdb.

    Raises:
        UsageError: one is given.
    """
    given = {"--baud": baud, "--guest": guest, "--target-host": target_host}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} needs --kgdb", hint="`vmdebug attach NAME` attaches to a VM")


def kernel_of(
    guest: str | None, target_host: str | None, nix_args: tuple[str, ...] | None, *, modules: bool
) -> Kernel:
    """Return the kernel that the machine runs: that of GUEST, or the one that `deploy` installed.

    Raises:
        UsageError: neither is known.
        VmdebugError: the guest cannot be resolved.
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
    return kernel if modules else msgspec.structs.replace(kernel, modules=None, module_symbols=())


def attach(words: str, baud: int | None, attachment: Attachment) -> NoReturn:
    """Run GDB, in place of this process, on the machine at the end of a line.

    Args:
        words: DEVICE, SOCKET or HOST:PORT.
        baud: Speed of a device; None takes the default.
        attachment: The rest. Its endpoint is set here; its timeout limits the wait for kgdb.
    """
    import msgspec

    from vmdebug.cli import render
    from vmdebug.debugger import interactive
    from vmdebug.debugger.kgdb import endpoint, stub
    from vmdebug.debugger.kgdb.owner import KgdbOwner
    from vmdebug.kernel_parameters import BAUD

    speed = BAUD if baud is None else baud
    where = endpoint.parse(words)
    seconds = attachment.timeout or (BATCH_SECONDS if attachment.batch else NO_LIMIT_SECONDS)
    full = msgspec.structs.replace(
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
            "": "The machine is stopped while GDB is attached; `detach` and `quit` resume it.\n"
            "Ctrl-C stops a running kernel only if the line is its console. Otherwise type on the machine:\n"
            "echo g > /proc/sysrq-trigger",
        }
    )
