"""`vmdebug attach`: runs an interactive GDB on a VM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from vmdebug.cli import dumped, options, verb
from vmdebug.cli import kgdb as kgdb_line
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.debugger.interactive import Attachment, Extra

ORDER = "vmdebug.order"
"""The key of the options' names, in the order given, in a context's `meta`."""


class Attach(TyperCommand):
    """`attach`, which keeps the order of `-x` and `-ex`, as GDB does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words, and keep the order of the options, which typer does not pass on."""
        args = options.rewritten(args)
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[ORDER] = tuple(option.name for option in order)
        return super().parse_args(ctx, args)


Until = Annotated[str | None, typer.Option(metavar="SYMBOL", help="Run to SYMBOL first.")]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="S", min=0, help="Exit with status 5 if --until or --kgdb takes longer."),
]
Program = Annotated[
    str,
    typer.Option(
        metavar="PROG", help="GDB, or a program that takes GDB's options; may include options of its own."
    ),
]
File = Annotated[
    list[str] | None, typer.Option("-x", metavar="F", help="Run GDB commands from file F. Repeatable.")
]
Command = Annotated[
    list[str] | None, typer.Option("-ex", metavar="CMD", help="Run a GDB command. Repeatable.")
]
NoInit = Annotated[bool, typer.Option("-nx", help="Do not read ~/.gdbinit.")]
Batch = Annotated[
    bool, typer.Option("--batch", help="Run the commands and exit, with status 1 if one failed.")
]
Share = Annotated[bool, typer.Option("--share", help="Let `trace` and `run --name` use this GDB too.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Warn and continue if the symbols are not those of the running kernel."),
]

app = verb.new_app()


@app.command(
    cls=Attach,
    epilog=verb.examples(
        "vmdebug attach",
        "vmdebug attach base-nixos --until start_kernel --timeout 60",
        "vmdebug attach --batch --until start_kernel -ex bt -ex 'info locals'",
        "vmdebug attach --gdb pwndbg -x ~/breakpoints.gdb",
        "vmdebug attach --kgdb /dev/ttyUSB0 --guest .#aethelred    # a machine, over its serial line",
        "vmdebug attach ./vmcore --batch -ex vmd-bt-all",
        "vmdebug attach --share    # and elsewhere: vmdebug trace vfs_read:count",
    ),
)
def attach(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME|FILE", help="The VM, or a dump.", autocompletion=verb.complete_vm),
    ] = None,
    *,
    until: Until = None,
    timeout: Timeout = None,
    gdb: Program = "gdb",
    x: File = None,
    ex: Command = None,
    nx: NoInit = False,
    batch: Batch = False,
    share: Share = False,
    force: Force = False,
    vmlinux: dumped.Vmlinux = None,
    kgdb: kgdb_line.Words = None,
    baud: kgdb_line.Baud = None,
    guest: kgdb_line.Guest = None,
    target_host: kgdb_line.TargetHost = None,
    modules: kgdb_line.Modules = True,
    override_input: options.OverrideInput = None,
    impure: options.Impure = False,
    nix_arg: options.NixArg = None,
) -> None:
    """Run GDB on a VM or a dump, with symbols, sources and scripts loaded.

    GDB loads vmlinux at the kernel's runtime address, finds the sources, loads the kernel's GDB scripts,
    and runs -x and -ex in the order given. Attaching stops the guest; `quit` and `detach` let it run.
    GDB reports a panic of the guest, with --batch also the end of its log; `quit` then leaves the guest
    stopped.

    A dump is a guest that does not run: the same commands show its memory, and the stacks of its CPUs and
    tasks.

    With --kgdb GDB debugs a physical machine over its serial line. The kernel is that of --guest, or the
    one that `vmdebug deploy` installed.
    """
    from functools import partial

    from vmdebug.debugger import interactive

    attachment = partial(
        interactive.Attachment,
        program=interactive.program(gdb),
        extra=_in_order(context, {"x": x or [], "ex": ex or []}),
        batch=batch,
        until=until,
        timeout=timeout,
        init=not nx,
        force=force,
        share=share,
    )
    file = dumped.path(name) if kgdb is None else None
    if file is not None:
        if until is not None or share:
            raise UsageError("a dump does not run", hint="leave out --until and --share")
        _to_dump(file, vmlinux, attachment, force=force)
    dumped.refuse_vmlinux(vmlinux)
    if kgdb is None:
        kgdb_line.refuse_without(baud=baud, guest=guest, target_host=target_host)
        _refuse(until=until, timeout=timeout, share=share, batch=batch)
        _to_vm(name, attachment, until=until)
    else:
        kgdb_line.check_options(name=name, until=until, timeout=timeout, share=share)
        nix_words = options.nix_words(override_input, impure, nix_arg)
        kernel = kgdb_line.kernel_of(guest, target_host, nix_words, modules=modules)
        kgdb_line.attach(kgdb, baud, attachment(endpoint="", kernel=kernel))


def _refuse(*, until: str | None, timeout: float | None, share: bool, batch: bool) -> None:
    if timeout is not None and until is None:
        raise UsageError("--timeout needs --until", hint="name the symbol to run to: --until start_kernel")
    if share and batch:
        raise UsageError("--share and --batch cannot both be given", hint="leave --share out")


def _to_vm(name: str | None, attachment: Callable[..., Attachment], *, until: str | None) -> NoReturn:
    """Run GDB on a VM, in place of this process.

    Args:
        name: The VM; None for the only one.
        attachment: Makes the attachment, given what belongs to the VM.
        until: Where the guest has to run to first, if anywhere.
    """
    from vmdebug import vm
    from vmdebug.channel.log import death
    from vmdebug.debugger import interactive

    machine = vm.find(name)
    # A guest that has printed nothing has hardly run; to ask QEMU, a QMP client would have to be imported.
    if until is not None and _has_text(machine.rundir.console_log):
        machine.check_alive("--until")
    state = machine.state
    wanted = attachment(
        endpoint=state.gdb,
        kernel=state.spec.kernel,
        accel=state.accel,
        kaslr="nokaslr" not in state.spec.parameters,
        panicked=death.panicked(machine.rundir.console_log),
    )
    interactive.attach(wanted, lock=machine.rundir.attach_lock, vm=machine.name)


def _to_dump(
    file: Path, vmlinux: Path | None, attachment: Callable[..., Attachment], *, force: bool
) -> NoReturn:
    """Run GDB on a dump, in place of this process.

    Args:
        file: The dump.
        vmlinux: The vmlinux of its kernel; None: find it.
        attachment: Makes the attachment.
        force: Whether to go on with symbols of another build.
    """
    import sys

    from vmdebug.debugger import interactive

    _, kernel = dumped.opened(file, vmlinux, what="attach to a dump", force=force)
    stub = (sys.executable, "-m", "vmdebug.drgn_program.stub", str(file.absolute()), str(kernel.vmlinux))
    interactive.to_dump(attachment(endpoint="", kernel=kernel), stub)


def _has_text(log: Path) -> bool:
    try:
        return log.stat().st_size > 0
    except FileNotFoundError:
        return False


def _in_order(context: typer.Context, given: dict[str, list[str]]) -> tuple[Extra, ...]:
    """Return the values of `-x` and `-ex` as one list, in the order given."""
    from vmdebug.debugger.interactive import Extra

    rest = {name: iter(values) for name, values in given.items()}
    return tuple(Extra(name, next(rest[name])) for name in context.meta[ORDER] if name in rest)
