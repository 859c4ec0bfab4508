"""`vmdebug deploy`: installs a NixOS system on a physical machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import options, render, verb
from vmdebug.deadline import BUILD_SECONDS, Deadline
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.guest_options import GuestOptions
    from vmdebug.sources.nixos.flake import Target
    from vmdebug.sources.nixos.rebuild import Action, System

SSH_SECONDS = 60.0
"""How long one ssh command may take."""

KEEP_SECONDS = 60.0
"""How long nix may take to register a garbage collector root."""


class Deploy(verb.WithTail):
    """`deploy`, with options that typer cannot parse."""

    tail_metavar = "NIXOS-REBUILD ARGS"

    def rewritten(self, words: list[str]) -> list[str]:
        """Rewrite the options that typer cannot parse."""
        return options.rewritten(words)


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
    target_host: Annotated[str, typer.Option(metavar="USER@HOST", help="The machine, as ssh takes it.")],
    boot: Annotated[bool, typer.Option("--boot", help="Activate it at the next boot, not now.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Activate it now, but not at the next boot.")] = False,
    sudo: Annotated[
        bool | None,
        typer.Option("--sudo/--no-sudo", help="Use sudo on the machine; the default unless USER is root."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands; run nothing.")] = False,
    facts: Annotated[
        bool, typer.Option("--facts", help="Fetch the machine's hardware configuration only.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="--facts: write to FILE instead of stdout.")
    ] = None,
    override_input: options.OverrideInput = None,
    impure: options.Impure = False,
    nix_arg: options.NixArg = None,
    force: options.Force = False,
    as_json: verb.Json = False,
) -> None:
    """Install a flake's NixOS system on a machine with nixos-rebuild.

    Builds the system here, copies it over ssh, and activates it. ssh and sudo must work without a
    password. Records the machine's new kernel for `vmdebug attach --kgdb`.
    """
    from vmdebug.sources.nixos import rebuild

    if boot and test:
        raise UsageError("--boot and --test exclude each other", hint="give neither: now and at each boot")
    if output is not None and not facts:
        raise UsageError("-o needs --facts", hint="leave it out, or add --facts")
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
    render.tell(
        f"{output}: the hardware configuration of {host}, made by `{shlex.join(rebuild.FACTS)}` there"
    )
    render.tell(f"import it in the machine's configuration: imports = [ ./{output.name} ];")


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
    """Record what the machine has now, and print it."""
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
        return "note: a new kernel needs a reboot, and --test does not last until then: use --boot"
    return f"note: the new kernel runs after a reboot: ssh {host} sudo reboot"
