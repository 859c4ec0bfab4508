"""`vmdebug restart`: restarts a VM with the present build of its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.deadline import BUILD_SECONDS, LAUNCH_SECONDS, Deadline

if TYPE_CHECKING:
    from pathlib import Path

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
            from vmdebug.sources import tree_build

            make(tree_build.tree_of(wanted), jobs, report)
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


def make(tree: Path, jobs: int | None, report: Report) -> None:
    """Run make in a tree, and print the result.

    Raises:
        BuildError: the build failed.
    """
    from vmdebug.sources import tree_build

    built = tree_build.build(tree, jobs=jobs, report=report, deadline=Deadline.after(BUILD_SECONDS))
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
