"""What the verbs share: how one is declared, and options that several take."""

from __future__ import annotations

import contextlib
import shlex
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from vmdebug.errors import UsageError, VmdebugError

TAIL = "vmdebug.tail"
"""Key in a context's `meta` of the words after `--`; see `WithTail`."""


def new_app(*, add_completion: bool = False, **settings: Any) -> typer.Typer:
    """Return a typer app in our style: plain help, which needs no rich and starts fast."""
    return typer.Typer(
        add_completion=add_completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def examples(*lines: str) -> str:
    """Return the end of a help text, with commands as one types them."""
    # \b alone on a line keeps click from filling the paragraph.
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


class WithTail(TyperCommand):
    """A command whose words after `--` belong to somebody else: QEMU, a script, the guest's shell.

    click would give them to whatever positional argument is still free.
    """

    tail_metavar = "ARGS"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the words after the first `--` aside, and parse the rest."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[TAIL] = tuple(args[end + 1 :])
        ctx.allow_extra_args = True
        rest: list[str] = super().parse_args(ctx, args[:end])
        if rest and not ctx.resilient_parsing:
            words = shlex.join(rest)
            raise UsageError(
                f"{ctx.command_path} does not take: {words}",
                hint=f"{self.tail_metavar} would follow two dashes: {ctx.command_path} … -- {words}",
            )
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the pieces of the usage line, the tail last."""
        return [*super().collect_usage_pieces(ctx), f"[-- {self.tail_metavar}]"]


def tail(context: typer.Context) -> tuple[str, ...]:
    """Return what stood after `--`."""
    words: tuple[str, ...] = context.meta[TAIL]
    return words


def complete_vm(incomplete: str) -> list[str]:
    """Return the names of VMs, for a shell's completion."""
    from vmdebug import vm

    # A shell's prompt is no place for errors.
    with contextlib.suppress(VmdebugError):
        return [name for name in vm.names() if name.startswith(incomplete)]
    return []


def complete_guest(incomplete: str) -> list[str]:
    """Return what can be named as a guest without looking at files, for a shell's completion."""
    from vmdebug import config

    with contextlib.suppress(VmdebugError):
        return [name for name in (*config.names(), "builtin") if name.startswith(incomplete)]
    return []


VmName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME", help="Which VM; not needed while only one runs.", autocompletion=complete_vm
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout.")]
