"""`vmdebug start`: starts a guest in QEMU, from wherever it is defined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmdebug.cli import options, render, restart, verb
from vmdebug.deadline import BUILD_SECONDS, Deadline

if TYPE_CHECKING:
    from vmdebug.guest import LaunchSpec
    from vmdebug.guest_options import GuestOptions
    from vmdebug.progress import Report
    from vmdebug.vm import Vm


class Start(verb.WithTail):
    """`start`, with options that typer cannot parse."""

    tail_metavar = "QEMU ARGS"

    def rewritten(self, words: list[str]) -> list[str]:
        """Rewrite the options that typer cannot parse."""
        return options.rewritten(words)


Foreground = Annotated[
    bool,
    typer.Option("--fg", help="Stay in the foreground with the console; the VM ends with this command."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the guest and the QEMU command line; start nothing.")
]

app = verb.new_app()


@app.command(
    cls=Start,
    epilog=verb.examples(
        "vmdebug start --halt",
        "vmdebug start .#base-nixos --halt --kernel ~/src/linux",
        "vmdebug start ~/src/linux --append loglevel=8 -- -device virtio-rng-pci",
        "vmdebug start ~/src/linux --build",
        "vmdebug start --root debian:bookworm --net user --forward 8080:80",
    ),
)
def start(
    context: typer.Context,
    guest: options.Guest = None,
    *,
    halt: options.Halt = None,
    name: options.Name = None,
    kernel: options.Kernel = None,
    vmlinux: options.Vmlinux = None,
    gdb_scripts: options.GdbScripts = None,
    debuginfod: options.Debuginfod = None,
    append: options.Append = None,
    kaslr: options.Kaslr = None,
    accel: options.Accel = None,
    memory: options.Memory = None,
    cpus: options.Cpus = None,
    disk: options.Disk = None,
    initrd: options.Initrd = None,
    modules: options.Modules = None,
    module: options.Module = None,
    load_modules: options.LoadModules = None,
    root: options.Root = None,
    root_dev: options.RootDev = None,
    root_image: options.RootImage = None,
    init: options.Init = None,
    login: options.Login = None,
    share: options.Share = None,
    keep: options.Keep = None,
    net: options.Net = None,
    forward: options.Forward = None,
    firmware: options.Firmware = None,
    tcp: options.Tcp = None,
    trace_ready: options.TraceReady = None,
    record: options.Record = None,
    override_input: options.OverrideInput = None,
    impure: options.Impure = False,
    nix_arg: options.NixArg = None,
    force: options.Force = False,
    build: restart.Build = False,
    jobs: restart.Jobs = None,
    fg: Foreground = False,
    dry_run: DryRun = False,
    as_json: verb.Json = False,
) -> None:
    """Start a guest and leave it running.

    Returns once QEMU answers. Prints the accelerator and why it was chosen, the kernel, whether its
    symbols match, the sockets, and what to type next.
    """
    wanted = options.given(
        guest,
        name=name,
        halt=halt,
        kernel=kernel,
        vmlinux=vmlinux,
        gdb_scripts=gdb_scripts,
        debuginfod=debuginfod,
        append=append,
        kaslr=kaslr,
        accel=accel,
        memory=memory,
        cpus=cpus,
        disk=disk,
        initrd=initrd,
        modules=modules,
        module=module or None,
        load_modules=load_modules,
        root=root,
        root_dev=root_dev,
        root_image=root_image,
        init=init,
        login=login,
        share=tuple(share) if share else None,
        keep=keep,
        net=net or None,
        forward=forward or None,
        firmware=firmware,
        tcp=tcp,
        trace_ready=trace_ready,
        record=record,
        qemu_args=verb.tail(context) or None,
        nix_args=options.nix_words(override_input, impure, nix_arg),
        force=force or None,
    )
    if build and not dry_run:
        with render.progress() as report:
            restart.make(wanted, jobs, report)
    if dry_run:
        _show_plan(wanted, as_json=as_json)
    elif fg:
        _foreground(wanted)
    else:
        _detached(wanted, as_json=as_json)


def _resolve(wanted: GuestOptions, report: Report, *, dry_run: bool = False) -> LaunchSpec:
    from vmdebug import sources

    deadline = Deadline.after(BUILD_SECONDS)
    return sources.resolve(wanted, report=report, deadline=deadline, dry_run=dry_run)


def _launch(wanted: GuestOptions) -> Vm:
    """Start a VM that ends with this process."""
    from vmdebug import vm

    with render.progress() as report:
        spec = _resolve(wanted, report)
        return vm.launch(
            spec,
            bound=True,
            report=report,
            exact_name=wanted.name is not None,
        )


def _show_plan(wanted: GuestOptions, *, as_json: bool) -> None:
    from vmdebug import guest, vm

    with render.progress() as report:
        spec = _resolve(wanted, report, dry_run=True)
        plan = vm.plan(spec, report=report)
    if as_json:
        render.put(guest.encode(spec).decode())
        return
    render.tell(guest.encode(spec).decode())
    render.tell(f"accelerator: {plan.accel}: {plan.reason}\n")
    render.put(plan.line())


def _detached(wanted: GuestOptions, *, as_json: bool) -> None:
    """Start a VM that outlives this process, once all is printed: if that fails, nothing is left running."""
    from vmdebug.cli import facts
    from vmdebug.vm import logout

    with _launch(wanted) as machine:
        # QEMU has answered just now; asking for its status again would take a tenth of the whole time.
        found = {**machine.facts("halted" if machine.state.spec.halt else "running"), "owner": None}
        if as_json:
            render.put_json(found)
        else:
            render.tell_facts(facts.for_people(machine, found))
            if warning := logout.warning(machine.rundir.path):
                render.tell(f"\nnote: {warning}")
            render.tell("\nnext:\n" + "\n".join(f"  {line}" for line in _next(found)))
        render.flush()
        machine.keep()


def _next(found: dict[str, Any]) -> list[str]:
    """Return the commands that are likely to be typed next."""
    name = found["name"]
    if found["status"] == "halted":
        return [
            f"vmdebug attach {name}                        # GDB, at the reset vector",
            f"vmdebug attach {name} --until start_kernel   # GDB, at start_kernel",
            f"vmdebug stop {name}",
        ]
    return [
        f"vmdebug exec {name} -- uname -a",
        f"vmdebug console {name}                       # Ctrl-] leaves",
        f"vmdebug attach {name}                        # GDB; stops the guest",
        f"vmdebug stop {name}",
    ]


def _foreground(wanted: GuestOptions) -> None:
    """Show the console until the VM ends; the VM ends with this process in any case."""
    from vmdebug.channel.serial import terminal
    from vmdebug.cli import console, facts

    with terminal.interrupts() as interrupted, _launch(wanted) as machine:
        render.tell_facts(facts.for_people(machine, machine.facts()))
        console.show(machine, interrupted=interrupted)
