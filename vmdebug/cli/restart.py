"""`vmdebug restart`: restarts a VM with the present build of its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.deadline import BUILD_SECONDS, LAUNCH_SECONDS, Deadline

if TYPE_CHECKING:
    from vmdebug.guest_options import GuestOptions
    from vmdebug.progress import Report
    from vmdebug.vm import Vm

app = verb.new_app()

Build = Annotated[bool, typer.Option("--build", help="Run make in the kernel's build tree first.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N",
        min=1,
        help="With --build: number of parallel jobs; by default one for each CPU.",
    ),
]


@app.command(
    epilog=verb.examples(
        "vmdebug restart", "vmdebug restart linux --build", "vmdebug restart linux --build --halt"
    ),
)
def restart(
    name: verb.VmName = None,
    *,
    build: Build = False,
    jobs: Jobs = None,
    halt: Annotated[
        bool | None,
        typer.Option("--halt/--no-halt", "-S", help="Stop at the reset vector; by default as at its start."),
    ] = None,
    as_json: verb.Json = False,
) -> None:
    """Restart a VM with the same options and the present build of its kernel.

    Reads image, symbols, scripts and build-id again. The VM runs until everything is found and built,
    and there is space for the new one.
    A GDB that was attached connects to the new VM with `vmd-reconnect`, and keeps its breakpoints.
    """
    from vmdebug import restart as restarting
    from vmdebug import vm
    from vmdebug.cli import facts

    machine = vm.find(name)
    wanted = restarting.options_of(machine)
    with render.progress() as report:
        if build:
            make(wanted, jobs, report)
        deadline = Deadline.after(BUILD_SECONDS)
        spec = restarting.resolve(machine, halt=halt, report=report, deadline=deadline)
        start = restarting.prepare(machine, spec, report=report, launch_seconds=LAUNCH_SECONDS)
        who = restarting.attached(machine)
        fresh = restarting.replace(machine, spec, start, report=report, launch_seconds=LAUNCH_SECONDS)
    found = fresh.facts("halted" if spec.halt else "running")
    if as_json:
        render.put_json({**found, "was_attached": who})
        return
    render.tell_facts(facts.for_people(fresh, found) | _before(machine, fresh))
    if who:
        render.tell(f"\nthe GDB of {who} has lost its guest; to reconnect, type there: vmd-reconnect")


def make(wanted: GuestOptions, jobs: int | None, report: Report) -> None:
    """Run make in the tree of a guest's kernel, and print the result.

    Raises:
        UsageError: the kernel is not built in a tree, or a boot needs another value of a new option.
        BuildError: the build failed.
    """
    from vmdebug.sources import tree_build

    tree, needs = tree_build.tree_of(wanted), tree_build.needs_of(wanted)
    deadline = Deadline.after(BUILD_SECONDS)
    built = tree_build.build(tree, needs=needs, jobs=jobs, report=report, deadline=deadline)
    if built.new_options:
        render.tell(f"{tree}/.config is older than its source; these options are new, with their defaults:")
        render.tell("\n".join(f"  {name}={value}" for name, value in built.new_options.items()))
    if built.warnings:
        render.tell(built.warnings)
    render.tell_facts(
        {
            "built": f"{built.tree}: {built.objects} objects in {built.seconds:.0f} s",
            "compiler": built.compiler,
        }
    )


def _before(old: Vm, new: Vm) -> dict[str, str]:
    before, now = old.state.spec.kernel, new.state.spec.kernel
    if before.build_id == now.build_id:
        return {"before": "the same kernel"}
    return {"before": f"build-id {before.build_id or 'none'}, now {now.build_id or 'none'}"}
