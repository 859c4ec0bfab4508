"""`vmdebug attach`: a person's GDB on a running VM."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from vmdebug.cli import kgdb as kgdb_line
from vmdebug.cli import options, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.debugger.interactive import Attachment, Extra

ORDER = "vmdebug.order"
"""Key in a context's `meta` of the options' names in the order in which they were given."""


class Attach(TyperCommand):
    """`attach`, which knows in which order its `-x` and `-ex` came, as GDB does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words, and keep the order that typer does not hand on."""
        args = options.rewritten(args)
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[ORDER] = tuple(option.name for option in order)
        return super().parse_args(ctx, args)


app = verb.new_app()


@app.command(
    cls=Attach,
    epilog=verb.examples(
        "vmdebug attach",
        "vmdebug attach base-nixos --until start_kernel --timeout 60",
        "vmdebug attach --batch --until start_kernel -ex bt -ex 'info locals'",
        "vmdebug attach --gdb pwndbg -x ~/breakpoints.gdb",
        "vmdebug attach --kgdb /dev/ttyUSB0 --guest .#aethelred    # a real machine, by its serial line",
        "vmdebug attach --share    # and elsewhere: vmdebug trace vfs_read:count",
    ),
)
def attach(
    context: typer.Context,
    name: verb.VmName = None,
    *,
    until: Annotated[
        str | None, typer.Option(metavar="SYMBOL", help="Run to there before anything else.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", min=0, help="End with status 5 when --until, or --kgdb, takes longer."),
    ] = None,
    gdb: Annotated[
        str, typer.Option(metavar="PROG", help="GDB, or a program that takes its options; may have options.")
    ] = "gdb",
    x: Annotated[
        list[str] | None, typer.Option("-x", metavar="F", help="Run GDB commands from a file. Repeatable.")
    ] = None,
    ex: Annotated[
        list[str] | None, typer.Option("-ex", metavar="CMD", help="Run a GDB command. Repeatable.")
    ] = None,
    nx: Annotated[bool, typer.Option("-nx", help="Leave ~/.gdbinit out.")] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Run the commands and end; status 1 when one of them failed.")
    ] = False,
    share: Annotated[
        bool, typer.Option("--share", help="Let `trace` and `run --name` use this GDB meanwhile.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on when the symbols are not those of the kernel that runs.")
    ] = False,
    kgdb: kgdb_line.Words = None,
    baud: kgdb_line.Baud = None,
    guest: kgdb_line.Guest = None,
    target_host: kgdb_line.TargetHost = None,
    modules: kgdb_line.Modules = True,
    override_input: options.OverrideInput = None,
    impure: options.Impure = False,
    nix_arg: options.NixArg = None,
) -> None:
    """Become a GDB on a running VM, with everything loaded.

    That is vmlinux where the kernel runs, its sources, its GDB scripts, and -x and -ex in the order
    given. Attaching stops the guest; quitting or `detach` lets it run on.

    With --kgdb it is a machine that is no VM, whose kernel is that of GUEST, or what `vmdebug deploy`
    brought there.
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
    if kgdb is None:
        kgdb_line.refuse_without(baud=baud, guest=guest, target_host=target_host)
        _refuse(until=until, timeout=timeout, share=share, batch=batch)
        _to_vm(name, attachment)
    else:
        kgdb_line.refuse(name=name, until=until, timeout=timeout, share=share)
        nix_words = options.nix_words(override_input, impure, nix_arg)
        kernel = kgdb_line.kernel_of(guest, target_host, nix_words, modules=modules)
        kgdb_line.attach(kgdb, baud, attachment(endpoint="", kernel=kernel))


def _refuse(*, until: str | None, timeout: float | None, share: bool, batch: bool) -> None:
    if timeout is not None and until is None:
        raise UsageError("--timeout is for --until", hint="say where to run to: --until start_kernel")
    if share and batch:
        raise UsageError("--share and --batch cannot both be given", hint="leave --share out")


def _to_vm(name: str | None, attachment: Callable[..., Attachment]) -> NoReturn:
    """Become GDB on a VM; what has to do with it is added to the attachment."""
    from vmdebug import vm
    from vmdebug.debugger import interactive

    machine = vm.find(name)
    state = machine.state
    wanted = attachment(
        endpoint=state.gdb,
        kernel=state.spec.kernel,
        accel=state.accel,
        kaslr="nokaslr" not in state.spec.parameters,
    )
    interactive.attach(wanted, lock=machine.rundir.attach_lock, vm=machine.name)


def _in_order(context: typer.Context, given: dict[str, list[str]]) -> tuple[Extra, ...]:
    """Return the values of `-x` and `-ex` as one list, in the order in which they were given."""
    from vmdebug.debugger.interactive import Extra

    rest = {name: iter(values) for name, values in given.items()}
    return tuple(Extra(name, next(rest[name])) for name in context.meta[ORDER] if name in rest)
