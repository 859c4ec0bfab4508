"""`vmdebug report`: what has happened to a guest, or to the kernel in a dump."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import dumped, options, render, verb

if TYPE_CHECKING:
    from vmdebug.postmortem import Report

REPORT_SECONDS = 120.0
"""How long the report about a live guest may take; sections that take longer say so."""

app = verb.new_app()


@app.command(
    epilog=verb.examples(
        "vmdebug report",
        "vmdebug report vmcore --vmlinux ~/src/linux/vmlinux",
        "vmdebug report base-nixos -o report    # a file for each section",
    ),
)
def report(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME|FILE", help="The VM, or a dump.", autocompletion=verb.complete_vm),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write each section to a file in this directory."),
    ] = None,
    vmlinux: dumped.Vmlinux = None,
    force: options.Force = False,
) -> None:
    """Report what has happened to a guest, or to the kernel in a dump.

    Shows the kernel's warnings, oopses and panics with source lines, the stacks of all CPUs, blocked
    tasks and the locks that they wait for, and the end of the kernel's log. A running guest is stopped
    meanwhile.
    """
    file = dumped.path(name)
    if file is None:
        dumped.refuse_vmlinux(vmlinux)
        made = _of_vm(name, force=force)
    else:
        from vmdebug import dump_report

        (program, _), kernel = dumped.opened(file, vmlinux, what="a report about a dump", force=force)
        made = dump_report.of_dump(program, kernel)
    if output is None:
        render.put(str(made))
        return
    from vmdebug.errors import HostError

    try:
        for path in made.write(output):
            render.put(str(path))
    except OSError as error:
        raise HostError(f"cannot write {error.filename}: {error.strerror}", hint="give another -o") from error


def _of_vm(name: str | None, *, force: bool) -> Report:
    from vmdebug import postmortem, session
    from vmdebug.channel.log import trouble
    from vmdebug.channel.log.kept import read
    from vmdebug.deadline import Deadline

    with session.attach(name, force=force) as attached, render.step(render.SYMBOLS):
        log = read(attached.vm.rundir.console_log).data.decode(errors="replace")
        return postmortem.collect(
            attached, troubles=trouble.find(log), deadline=Deadline.after(REPORT_SECONDS)
        )
