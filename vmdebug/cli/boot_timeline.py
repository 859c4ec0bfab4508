"""`vmdebug boot-timeline`: shows what guests do while they boot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import options, render, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.timeline.boot import Boot

app = verb.new_app()

_ROWS = 30


@app.command(
    epilog=verb.examples(
        "vmdebug boot-timeline builtin -o boot.html",
        "vmdebug boot-timeline ~/linux-6.12 ~/linux -o change.html --perfetto change.pftrace",
    ),
)
def boot_timeline(
    guests: Annotated[
        list[str],
        typer.Argument(
            metavar="GUEST [GUEST2]", help="The guest, or two to compare.", autocompletion=verb.complete_guest
        ),
    ],
    *,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write a page, FILE.html.")
    ] = None,
    perfetto: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a trace for ui.perfetto.dev.")
    ] = None,
    append: options.Append = None,
    accel: options.Accel = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds that each guest may take to boot.")
    ] = 180.0,
    as_json: verb.Json = False,
) -> None:
    """Show how long initcalls, device probes, modules and units take while a guest boots.

    Boots the guest with initcall_debug, reads the kernel's log once its shell answers, and ends it. With two
    guests, prints the differences, the largest first.
    """
    if len(guests) > 2:  # noqa: PLR2004 - two are compared
        raise UsageError(f"boot-timeline takes one or two guests, not {len(guests)}", hint="leave some out")
    _check(guests, output, perfetto)
    from vmdebug.timeline import page
    from vmdebug.trace.profile import writing

    boots = [_boot(guest, append, accel, timeout) for guest in guests]
    for boot in boots:
        for note in boot.notes:
            render.tell(f"note: {boot.name}: {note}")
    if output is not None:
        writing.write(output, page.render(boots).encode())
        render.tell(f"wrote {output}")
    if perfetto is not None:
        from vmdebug.timeline import perfetto as native

        writing.write(perfetto, native.render(boots))
        render.tell(f"wrote {perfetto}")
    if as_json:
        import msgspec

        render.put(msgspec.json.encode(boots).decode())
    elif output is None and perfetto is None:
        _put(boots)


def _check(guests: list[str], output: str | None, perfetto: str | None) -> None:
    """Raise what would otherwise be raised after a boot: for the second guest, or for the result."""
    from pathlib import Path

    from vmdebug import config, extras
    from vmdebug.sources import naming
    from vmdebug.trace.profile import writing

    for path in (output, perfetto):
        if path is not None:
            writing.check(path)
    if perfetto is not None:
        extras.PERFETTO.need("--perfetto")
    for guest in guests:
        naming.parse(config.lookup(guest, Path.cwd()).source)


def _boot(guest: str, append: str | None, accel: str | None, timeout: float) -> Boot:
    """Boot a guest, and return what it has done."""
    from vmdebug import session
    from vmdebug.timeline import log, units
    from vmdebug.timeline.boot import Boot

    parameters = " ".join(filter(None, (append, log.PARAMETERS)))
    given = {"accel": accel} if accel is not None else {}
    with (
        render.progress() as report,
        session.start(guest, append=parameters, report=report, **given) as started,  # type: ignore[arg-type]
    ):
        shown = started.exec(units.COMMAND, timeout=timeout).stdout
        lines = started.exec("dmesg", timeout=timeout, check=True).stdout.splitlines()
        steps, marks = log.parse(lines)
        kernel = started.vm.state.spec.kernel.release
    notes = () if steps else ("its kernel has logged no initcalls: does `dmesg` there print times?",)
    found = tuple(sorted([*steps, *units.parse(shown)], key=lambda step: step.start))
    return Boot(name=guest, kernel=kernel, steps=found, marks=marks, notes=notes)


def _put(boots: list[Boot]) -> None:
    """Print the longest steps of a boot, or the differences of two."""
    from vmdebug.timeline.boot import differences
    from vmdebug.timeline.page import shown

    if len(boots) > 1:
        rows = [
            (f"{1e3 * each.change:+.3f} ms", each.kind, each.name) for each in differences(*boots)[:_ROWS]
        ]
        render.put_table(("CHANGE", "KIND", "STEP"), rows)
        return
    (boot,) = boots
    longest = sorted(boot.steps, key=lambda step: -step.seconds)[:_ROWS]
    steps = [(shown(step.seconds), f"{step.start:.6f}", step.kind, step.name) for step in longest]
    render.put_table(("TOOK", "FROM", "KIND", "STEP"), steps)
    for name, at in boot.marks.items():
        render.put(f"{name}: {at:.6f} s")
