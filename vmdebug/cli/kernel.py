"""`vmdebug kernel`: the builtin guest's kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmdebug.cli import render, verb

app = verb.new_app(cls=verb.Group)


@app.callback()
def kernel() -> None:
    """Build the builtin kernel."""


@app.command(
    cls=verb.Command,
    epilog=verb.examples("vmdebug kernel build", "vmdebug kernel build --source ~/src/linux"),
)
def build(
    *,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Kernel source, or a tarball of it; else Debian's linux-source package."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="Compilers at once; one a CPU."),
    ] = None,
    as_json: verb.Json = False,
) -> None:
    """Build the small debuggable kernel of the guest `builtin`.

    Built out of tree, in the user's cache, once for a source, a configuration and a compiler; an
    interrupted build goes on where it was.
    """
    import msgspec

    from vmdebug.deadline import Deadline
    from vmdebug.sources import kbuild

    with render.progress() as report:
        built = kbuild.build(source, jobs=jobs, report=report, deadline=Deadline.after(verb.BUILD_SECONDS))
    if as_json:
        render.put_json(msgspec.structs.asdict(built))
        return
    render.tell_facts(
        {
            "kernel": f"{built.image}  {built.release}",
            "symbols": str(built.vmlinux),
            "source": str(built.origin),
            "took": f"{built.cpu_seconds:.0f} s of CPU for {built.objects} objects",
        }
    )
