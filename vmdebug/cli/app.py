"""The table of verbs; the module of a verb is imported when it is called."""

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
    "replay": "Replay a recorded guest, and leave it stopped at a position.",
    "recording": "List, describe, pack, check and delete recordings.",
    "attach": "Run GDB on a VM or a dump, with symbols, sources and scripts loaded.",
    "status": "Show running VMs.",
    "stop": "Stop VMs and remove their files.",
    "restart": "Restart a VM with the same options and the present build of its kernel.",
    "log": "Print a VM's serial log.",
    "dmesg": "Print the kernel log, read from guest memory or from a dump.",
    "decode": "Add source lines to the kernel traces in a text.",
    "console": "Connect to a VM's serial console; Ctrl-] leaves.",
    "exec": "Run a command in a guest's shell.",
    "ssh": "Log in to a guest with ssh, or run a command there.",
    "cp": "Copy files and directories into a guest, or out of it.",
    "drgn": "Run drgn on a VM or a dump: a prompt, a script or a statement.",
    "trace": "Print calls of kernel functions, with arguments, while the guest runs.",
    "cov": "Show which lines and branches of the kernel a guest executes.",
    "profile": "Sample what a guest's CPUs execute, with stacks of the kernel and of user space.",
    "boot-timeline": "Show how long initcalls, device probes, modules and units take while a guest boots.",
    "snapshot": "Save and restore the state of a VM.",
    "report": "Report what has happened to a guest, or to the kernel in a dump.",
    "dump": "Write a guest's memory to a file that crash, drgn and GDB can read.",
    "dap": "Serve an editor's debugger: the Debug Adapter Protocol, on standard input and output.",
    "editor": "Print or write an editor's configuration for debugging guests.",
    "clone": "Start copies of a running VM.",
    "run": "Run a Python script on a guest.",
    "hunt": "Run a script under many schedules, until a race in the kernel shows.",
    "kselftest": "Build kselftests and run them in a guest.",
    "kunit": "Run KUnit suites in a guest, and print their results.",
    "mcp": "Let an AI agent start, debug and trace guests: an MCP server on stdio.",
    "deploy": "Install a flake's NixOS system on a machine with nixos-rebuild.",
    "kernel": "Build, configure and check kernels; make their GDB scripts.",
    "doctor": "Check what this machine needs, and how to get it.",
}
"""Every verb with the first line of its help, so that `--help` imports none of them."""


class Verbs(TyperGroup):
    """The group of `VERBS`."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's signature
        """Return the verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer's signature
        """Return the command of a verb; None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        command = typer.main.get_command(
            importlib.import_module(f"vmdebug.cli.{cmd_name.replace('-', '_')}").app
        )
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write the table of verbs."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb that the words begin with.

        Raises:
            UsageError: there is no such verb.
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
        "vmdebug attach             # GDB, with symbols, scripts and sources loaded",
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
        bool, typer.Option("--debug", help="Show Python tracebacks, like VMDEBUG_DEBUG=1.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Debug a Linux kernel: start a guest in QEMU, and attach GDB with symbols that match its kernel.

    GUEST is FLAKEREF#NAME, a kernel build tree, a NixOS run-*-vm script, a bzImage, `builtin`,
    or a [guest.NAME] of the nearest vmdebug.toml.
    """


def run(words: Sequence[str]) -> int:
    """Run the verb that the words name and return the exit status.

    Raises:
        UsageError: the words cannot be parsed.
        Exception: any error of the verb.
    """
    command = typer.main.get_command(app)
    try:
        # Not standalone: all errors are printed in one form, by `cli.main`.
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
