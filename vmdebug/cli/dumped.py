"""A dump in place of a VM, for the commands that take either."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import render
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.drgn_program.dump import DumpFile
    from vmdebug.drgn_program.live import Opened
    from vmdebug.guest import Kernel

Vmlinux = Annotated[
    Path | None,
    typer.Option(metavar="F", help="vmlinux of the kernel in a dump, if it is not found automatically."),
]


def path(name: str | None) -> Path | None:
    """Return the path of a dump if NAME is a file, and not the name of a VM."""
    from vmdebug import vm

    if name is None or ("/" not in name and name in vm.names()):
        return None
    file = Path(name)
    return file if file.is_file() or "/" in name else None


def refuse_vmlinux(vmlinux: Path | None) -> None:
    """Refuse --vmlinux for a VM."""
    if vmlinux is not None:
        raise UsageError("--vmlinux needs a dump", hint="a VM has the vmlinux that it was started with")


def opened(file: Path, vmlinux: Path | None, *, what: str, force: bool) -> tuple[Opened, Kernel]:
    """Return the program of a dump, with the symbols of its kernel, and that kernel.

    Args:
        file: The dump.
        vmlinux: Its vmlinux; None: find it by the build-id or the release in the dump.
        what: The command, for the error if drgn is not installed.
        force: Whether to go on with symbols of another build.
    """
    from vmdebug import extras

    extras.DRGN.need(what)
    from vmdebug.drgn_program import symbols
    from vmdebug.drgn_program.dump import DumpFile
    from vmdebug.drgn_program.live import Opened

    with render.step(render.SYMBOLS):
        dump = DumpFile(file)
        kernel = _kernel(dump, vmlinux)
        notes = symbols.load(dump.program, kernel, force=force)
    for note in notes:
        render.tell(f"note: {note}")
    return Opened(dump.program, notes), kernel


def _kernel(dump: DumpFile, vmlinux: Path | None) -> Kernel:
    from vmdebug.cli import at_hand
    from vmdebug.debugger.text_kernels import Said
    from vmdebug.sources.kernels import image

    if vmlinux is not None:
        return image.of_vmlinux(vmlinux)
    found = at_hand.kernel((Said(dump.release, build_id=dump.build_id),))
    if found is None:
        of = f"{dump.release}, build-id {dump.build_id or 'unknown'}"
        raise UsageError(
            f"no vmlinux found for the kernel in {dump.path}: {of}", hint="give it: --vmlinux FILE"
        )
    return found
