"""`vmdebug cov`: records which lines and branches of the kernel a guest executes, and reports them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import options, render, verb
from vmdebug.errors import VmdebugError

if TYPE_CHECKING:
    from vmdebug.trace.coverage.library import Data

app = verb.new_app()

File = Annotated[Path, typer.Option("--file", metavar="FILE", help="The data file, of coverage.py's format.")]
Source = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The kernel's source, if it is not where the debugging information says."
    ),
]
DEFAULT = Path("kernel.coverage")

FORMS = ("html", "lcov", "xml", "json")


@app.callback()
def cov() -> None:
    """Show which lines and branches of the kernel a guest executes.

    The kernel needs no option, and is not changed: a plugin in QEMU sees its code run (TCG). Start the guest
    with `--trace-ready yes` if its QEMU is older than 9.2.
    """


@app.command(epilog=verb.examples("vmdebug cov start", "vmdebug cov start base"))
def start(name: verb.VmName = None, *, force: options.Force = False) -> None:
    """Begin to record; `cov stop` ends it. that of a halted guest begins when it runs."""
    from vmdebug import session

    with session.attach(name, force=force) as attached:
        attached.vm.check_alive("cov start")
        cover = attached.coverage()
        cover.begin(keep=True)
        cover.detach()
        render.tell(f"recording coverage of {attached.name}; end it: vmdebug cov stop {attached.name}")


@app.command(
    epilog=verb.examples(
        "vmdebug cov stop",
        "vmdebug cov stop base --context boot --append",
    )
)
def stop(
    name: verb.VmName = None,
    *,
    file: File = DEFAULT,
    context: Annotated[
        str, typer.Option(metavar="TEXT", help="A name for this run; reports say which run reached a line.")
    ] = "",
    append: Annotated[bool, typer.Option("--append", help="Keep what FILE has already.")] = False,
    source: Source = None,
    force: options.Force = False,
) -> None:
    """Write the recording to FILE, and end it.

    If FILE cannot be written, the recording goes on: give another FILE.
    """
    from vmdebug import extras, session

    extras.COV.need("vmdebug cov stop")
    with session.attach(name, force=force) as attached:
        cover = attached.coverage(source=source)
        cover.resume()
        try:
            with render.step("naming the lines"):
                cover.find_modules()
                cover.save(file, context=context, append=append)
            cover.end(timeout=0)  # what it recorded is safe
        except VmdebugError:
            render.tell(f"{attached.name} goes on recording: repeat vmdebug cov stop")
            raise
        finally:
            cover.detach()
        for note in cover.notes:
            render.tell(note)
        render.tell(f"wrote {file}; see it: vmdebug cov report --file {file}")


@app.command(
    epilog=verb.examples(
        "vmdebug cov report",
        "vmdebug cov report --html coverage",
        "vmdebug cov report fs/proc --lcov kernel.info",
        "vmdebug cov report --diff master",
    )
)
def report(
    only: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH…]", help="Only these files and directories of the tree, and modules."),
    ] = None,
    *,
    file: File = DEFAULT,
    html: Annotated[Path | None, typer.Option(metavar="DIR", help="Write pages.")] = None,
    lcov: Annotated[Path | None, typer.Option(metavar="OUT", help="Write a tracefile of lcov.")] = None,
    xml: Annotated[Path | None, typer.Option(metavar="OUT", help="Write Cobertura's XML.")] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write JSON, with the runs that reached each line."),
    ] = None,
    diff: Annotated[
        str, typer.Option(metavar="REV", help="Print the lines changed since REV that no run reached.")
    ] = "",
) -> None:
    """Print what was executed, or write reports.

    With --diff the exit status is 1 if a changed line was not reached.
    """
    from vmdebug import extras

    extras.COV.need("vmdebug cov report")
    from vmdebug.trace.coverage import library

    data = library.Data(file)
    files = data.files(only or ())
    written = False
    for form, where in zip(FORMS, (html, lcov, xml, json), strict=True):
        if where is not None:
            with render.step(f"writing {where}"):
                library.report(file, form, where, files)
            render.tell(f"wrote {where / 'index.html' if form == 'html' else where}")
            written = True
    if diff:
        _put_unreached(data, diff)
    elif not written:
        with render.step("reading the coverage"):
            _, text = library.report(file, "term", None, files)
        render.put(text.rstrip("\n"))


def _put_unreached(data: Data, revision: str) -> None:
    """Print the changed lines that no run reached.

    Raises:
        typer.Exit: there are some.
    """
    from vmdebug.trace.coverage import changes

    found = data.unreached(revision)
    for path, lines in sorted(found.items()):
        render.put(f"{path}: {changes.ranges(lines)}")
    if found:
        count = sum(map(len, found.values()))
        render.tell(f"{count} changed line{'' if count == 1 else 's'} with code not reached since {revision}")
        raise typer.Exit(1)
    render.tell(f"all changed lines with code since {revision} were reached")
