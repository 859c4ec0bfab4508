"""`vmdebug dump`: writes a guest's memory to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmdebug.cli import render, verb

app = verb.new_app()


@app.command(
    epilog=verb.examples(
        "vmdebug dump -o vmcore",
        "vmdebug dump base-nixos -o vmcore.elf --format elf",
        "vmdebug report vmcore    # drgn, dmesg, report and attach take a dump too",
    ),
)
def dump(
    name: verb.VmName = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="F",
            help="kdump-zlib (a tenth as large as elf), elf, or kdump-lzo and kdump-snappy if QEMU has them.",
        ),
    ] = "kdump-zlib",
    as_json: verb.Json = False,
) -> None:
    """Write a guest's memory to a file that crash, drgn and GDB can read.

    The guest may run, be stopped or have panicked; QEMU stops it meanwhile.
    """
    import msgspec

    from vmdebug import vm
    from vmdebug.vm import dump as dumps

    machine = vm.find(name)
    with render.progress() as report:
        made = dumps.write(machine, output, format_=format_, report=report)
    readers = dumps.readers(made, machine.state.spec.kernel)
    if as_json:
        render.put_json({**msgspec.structs.asdict(made), "open": readers})
        return
    size = f"{made.size >> 20} MiB, {made.format}"
    render.tell_facts({"dump": f"{made.path}  {size}", "open it": "\n".join(readers)})
