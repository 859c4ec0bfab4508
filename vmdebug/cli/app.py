"""The verbs by name; each one's module is imported when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vmdebug.cli import verb
from vmdebug.errors import UsageError
from vmdebug.spelling import nearest

try:
    from typer import TyperException as ParseError
except ImportError:  # before 0.28 typer raised click's own
    from click import ClickException as ParseError  # type: ignore[assignment]

VERBS = {
    "start": "Start a guest and leave it running.",
    "attach": "Become a GDB on a running VM, with everything loaded.",
    "status": "Show what runs.",
    "stop": "End VMs and leave nothing behind.",
    "restart": "Start a VM anew under its name, with the options that it was started with.",
    "log": "Print a VM's serial log.",
    "dmesg": "Print the kernel's log, read out of guest memory.",
    "console": "Talk to a VM's serial line; Ctrl-] leaves.",
    "exec": "Run a command in a guest's shell.",
    "trace": "Print what kernel functions are called with, while the guest runs.",
    "snapshot": "Save a VM's state and go back to it.",
    "clone": "Start copies of a VM that go on from where it is.",
    "run": "Run a script's main(session) on a guest.",
    "deploy": "Bring a flake's NixOS system onto a machine, by nixos-rebuild.",
    "kernel": "Build the builtin kernel; make GDB scripts for any kernel.",
    "doctor": "Say what this machine lacks, and how to get it.",
}
"""Every verb and the first line of its help, so that `--help` imports none of them."""


class Verbs(TyperGroup):
    """The group of `VERBS`."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's signature
        """Return the verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer's signature
        """Return the verb's command; None when there is no such verb."""
        if cmd_name not in VERBS:
            return None
        command = typer.main.get_command(importlib.import_module(f"vmdebug.cli.{cmd_name}").app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write the table of verbs."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb that the words begin with.

        Raises:
            UsageError: there is none of that name.
        """
        if args[0] not in VERBS and not ctx.resilient_parsing:
            near = nearest(args[0], VERBS)
            hint = f"did you mean `vmdebug {near}`?" if near else "`vmdebug --help` lists the verbs"
            raise UsageError(f"there is no verb {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)


app = verb.new_app(
    cls=Verbs,
    add_completion=True,
    epilog=verb.examples(
        "vmdebug start --halt       # the builtin guest, stopped at the reset vector",
        "vmdebug attach             # GDB on it; symbols, scripts and sources loaded",
        "vmdebug stop --all",
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from vmdebug.cli import render

        render.put(f"vmdebug {version('vmdebug')}")
        raise typer.Exit


@app.callback()
def everything(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show Python tracebacks; VMDEBUG_DEBUG=1 does it too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Start a Linux guest in QEMU under GDB's control, with symbols that match its kernel.

    GUEST is FLAKEREF#NAME, a kernel build tree, a NixOS run-*-vm script, a bzImage, `builtin`,
    or a [guest.NAME] of the nearest vmdebug.toml.
    """


def run(words: Sequence[str]) -> int:
    """Run the verb that the words name and return the exit status.

    Raises:
        UsageError: the words cannot be parsed.
        Exception: whatever the verb raises.
    """
    command = typer.main.get_command(app)
    try:
        # Not standalone: the errors are ours to show, all in one form.
        status = command.main(list(words) or ["--help"], prog_name="vmdebug", standalone_mode=False)
    except ParseError as error:
        # For an option without its value typer does not say which verb it belongs to.
        called = next((word for word in words if word in VERBS), "")
        context = getattr(error, "ctx", None)
        where = context.command_path if context else f"vmdebug {called}".strip()
        message = error.format_message().rstrip(".")
        raise UsageError(
            message[:1].lower() + message[1:], hint=f"`{where} --help` shows what it takes"
        ) from error
    return status if isinstance(status, int) else 0
