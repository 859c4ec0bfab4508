"""What the verbs share: the declaration of a verb, and options that several take."""

from __future__ import annotations

import contextlib
import shlex
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from vmdebug.errors import UsageError, VmdebugError

TAIL = "vmdebug.tail"
"""The key of the words after `--` in a context's `meta`; see `WithTail`."""


def new_app(*, add_completion: bool = False, **settings: Any) -> typer.Typer:
    """Return a typer app with plain help, which needs no rich and starts fast."""
    return typer.Typer(
        add_completion=add_completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def examples(*lines: str) -> str:
    """Return the examples at the end of a help text."""
    # \b alone on a line keeps typer from rewrapping the paragraph.
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


class WithTail(TyperCommand):
    """A command whose words after `--` are for another program: QEMU, a script, the guest's shell.

    typer would give them to the positional arguments that are still free.
    """

    tail_metavar = "ARGS"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put aside the words after the first `--`, and parse the rest."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[TAIL] = tuple(args[end + 1 :])
        ctx.allow_extra_args = True
        rest: list[str] = super().parse_args(ctx, self.rewritten(args[:end]))
        if rest and not ctx.resilient_parsing:
            words = shlex.join(rest)
            raise UsageError(
                f"{ctx.command_path} does not take: {words}",
                hint=f"{self.tail_metavar} follow two dashes: {ctx.command_path} … -- {words}",
            )
        return rest

    def rewritten(self, words: list[str]) -> list[str]:
        """Return the words before `--` in a form that typer can parse."""
        return words

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the pieces of the usage line, with the words after `--`."""
        return [*super().collect_usage_pieces(ctx), f"[-- {self.tail_metavar}]"]


def tail(context: typer.Context) -> tuple[str, ...]:
    """Return the words after `--`."""
    words: tuple[str, ...] = context.meta[TAIL]
    return words


def complete_vm(incomplete: str) -> list[str]:
    """Return the names of VMs, for shell completion."""
    from vmdebug import vm

    # An error would garble the shell's prompt.
    with contextlib.suppress(VmdebugError):
        return [name for name in vm.names() if name.startswith(incomplete)]
    return []


def complete_guest(incomplete: str) -> list[str]:
    """Return the guests that have names, for shell completion."""
    from vmdebug import config

    with contextlib.suppress(VmdebugError):
        return [name for name in (*config.names(), "builtin") if name.startswith(incomplete)]
    return []


VmName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="The VM; not needed if only one runs.", autocompletion=complete_vm),
]

Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout.")]
