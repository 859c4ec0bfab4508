"""`vmdebug deploy`: a NixOS system on a machine that is no VM."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmdebug.cli import options, render, verb
from vmdebug.deadline import BUILD_SECONDS, Deadline
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.guest import GuestOptions
    from vmdebug.sources.nixos.flake import Target
    from vmdebug.sources.nixos.rebuild import Action, System

SSH_SECONDS = 60.0
"""How long one question to the machine may take."""

KEEP_SECONDS = 60.0
"""How long nix may take to note what must not be collected."""


class Deploy(verb.WithTail):
    """`deploy`, with the options that typer cannot parse as they are written."""

    tail_metavar = "NIXOS-REBUILD ARGS"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what `options.rewritten` makes of the words."""
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*options.rewritten(args[:end]), *args[end:]])


app = verb.new_app()


@app.command(
    cls=Deploy,
    epilog=verb.examples(
        "vmdebug deploy .#aethelred-base --target-host brendan@192.168.2.3",
        "vmdebug deploy .#aethelred-base --target-host root@192.168.2.3 --boot",
        "vmdebug deploy --target-host brendan@192.168.2.3 --facts -o aethelred-hardware-configuration.nix",
        "vmdebug attach --kgdb /dev/ttyUSB0    # afterwards: the same kernel's symbols",
    ),
)
def deploy(
    context: typer.Context,
    guest: options.Guest = None,
    *,
    target_host: Annotated[str, typer.Option(metavar="USER@HOST", help="The machine, as for ssh.")],
    boot: Annotated[bool, typer.Option("--boot", help="From the next boot on, not now.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Now, but not at the next boot.")] = False,
    sudo: Annotated[
        bool | None,
        typer.Option("--sudo/--no-sudo", help="Become root there by sudo; the default unless USER is root."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands; run none of them.")] = False,
    facts: Annotated[
        bool, typer.Option("--facts", help="Only fetch the machine's hardware configuration.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="--facts: write it there, not to stdout.")
    ] = None,
    override_input: options.OverrideInput = None,
    impure: options.Impure = False,
    nix_arg: options.NixArg = None,
    force: options.Force = False,
    as_json: verb.Json = False,
) -> None:
    """Bring a flake's NixOS system onto a machine, by nixos-rebuild.

    It is built here, copied by ssh, and switched to. Nothing asks for a password: ssh and sudo have to
    let you in without one. Which kernel the machine has then is remembered for `vmdebug attach --kgdb`.
    """
    from vmdebug.sources.nixos import rebuild

    if boot and test:
        raise UsageError("--boot and --test cannot both be given", hint="leave both out for now and later")
    if output is not None and not facts:
        raise UsageError("-o is for --facts", hint="leave it out")
    host = rebuild.host_of(target_host)
    root = not host.startswith("root@") if sudo is None else sudo
    if facts:
        _facts(host, root, output, dry_run=dry_run)
        return
    nix_words = options.nix_words(override_input, impure, nix_arg)
    wanted = options.given(guest, nix_args=nix_words, force=force or None)
    action: Action = "boot" if boot else "test" if test else "switch"
    _system(wanted, action, host, root, verb.tail(context), dry_run=dry_run, as_json=as_json)


def _facts(host: str, sudo: bool, output: Path | None, *, dry_run: bool) -> None:
    from vmdebug import process
    from vmdebug.errors import HostError
    from vmdebug.sources.nixos import rebuild

    argv = rebuild.facts(host, sudo=sudo)
    if dry_run:
        render.put(process.shell_line(argv))
        return
    text = rebuild.ask(host, argv, deadline=Deadline.after(SSH_SECONDS))
    made = f"# Made on {host} by: {shlex.join(rebuild.FACTS)}\n{text}"
    if output is None:
        render.put(made.rstrip("\n"))
        return
    try:
        output.write_text(made)
    except OSError as error:
        raise HostError(f"cannot write {output}: {error.strerror}") from error
    render.tell(f"{output}: the hardware of {host}, by `{shlex.join(rebuild.FACTS)}` there")
    render.tell(f"import it into that machine's configuration: imports = [ ./{output.name} ];")


def _system(
    wanted: GuestOptions,
    action: Action,
    host: str,
    sudo: bool,
    more: tuple[str, ...],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from vmdebug import process, sources
    from vmdebug.sources.nixos import rebuild

    target = rebuild.target_of(sources.parse(wanted.source), wanted.nix_args)
    deadline = Deadline.after(BUILD_SECONDS)
    with render.progress() as report:
        if not dry_run:
            asking = Deadline.after(SSH_SECONDS)
            rebuild.ask(host, rebuild.preflight(host, sudo=sudo), deadline=asking)
        program = rebuild.find_program(target, report=report, deadline=deadline)
        usage = rebuild.usage(program, deadline=deadline)
        own = rebuild.options_of(program, usage, sudo=sudo)
        argv = rebuild.argv(program, action, target, host=host, options=own, more=more)
        if dry_run:
            system = None
        else:
            system = rebuild.build(target, wanted, report=report, deadline=deadline)
            what = f"deploying {target.words} to {host}"
            rebuild.run(argv, host, what=what, report=report, deadline=deadline)
    if system is None:
        render.put(process.shell_line(rebuild.preflight(host, sudo=sudo)))
        render.put(process.shell_line(argv, rebuild.environment()))
        return
    _done(target, action, host, system, as_json=as_json)


def _done(target: Target, action: Action, host: str, system: System, *, as_json: bool) -> None:
    """Remember what the machine has, and say so."""
    from vmdebug.sources.nixos import deployments, rebuild

    kernel = system.kernel
    deployments.remember(
        deployments.Deployment(host=host, guest=target.words, toplevel=system.toplevel, kernel=kernel),
        deadline=Deadline.after(KEEP_SECONDS),
    )
    runs = rebuild.ask(host, rebuild.booted(host), deadline=Deadline.after(SSH_SECONDS)).strip()
    facts = {
        "host": host,
        "action": action,
        "system": str(system.toplevel),
        "kernel": f"{kernel.image}  {kernel.release}".rstrip(),
        "symbols": str(kernel.vmlinux or "none"),
        "build_id": kernel.build_id,
        "runs": "this kernel" if runs == str(kernel.image) else f"still {runs or 'another kernel'}",
    }
    if as_json:
        render.put_json(facts)
        return
    render.tell_facts(facts)
    for note in system.notes:
        render.tell(f"note: {note}")
    if runs != str(kernel.image):
        render.tell(_reboot(host, action))


def _reboot(host: str, action: Action) -> str:
    if action == "test":
        return "note: a kernel comes with a boot, and --test is not for the next one: take --boot"
    return f"note: the new kernel runs after a reboot: ssh {host} sudo reboot"
