"""`vmdebug editor`: the configuration of editors for `vmdebug dap` and clangd."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import options, render, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdebug.faces.compile_commands import Command
    from vmdebug.faces.editors import EditorFile
    from vmdebug.guest import Kernel
    from vmdebug.progress import Report

app = verb.new_app()


@app.command(
    epilog=verb.examples(
        "vmdebug editor vscode",
        "vmdebug editor nvim --write",
        "vmdebug editor helix --guest ~/src/linux --write",
    ),
)
def editor(
    name: Annotated[str, typer.Argument(metavar="EDITOR", help="vscode, nvim, emacs, zed or helix.")],
    *,
    guest: Annotated[
        str | None,
        typer.Option(
            metavar="G",
            help="The guest that the configuration starts; by default vmdebug.toml's, else `builtin`.",
            autocompletion=verb.complete_guest,
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the files; without it they are printed.")
    ] = False,
    clangd: Annotated[
        bool,
        typer.Option(
            "--clangd/--no-clangd", help="Also compile_commands.json and .clangd for the kernel's tree."
        ),
    ] = True,
) -> None:
    """Print or write an editor's configuration for debugging guests.

    Writes below the present directory and below your home directory. Files that exist are left as they are,
    unless they are vmdebug's own; then the text is printed, for you to add. The guest's kernel, if it is a
    build tree or the builtin one, gets a compile_commands.json and settings for clangd.
    """
    from vmdebug.faces import editors
    from vmdebug.spelling import nearest

    if name not in editors.EDITORS:
        near = nearest(name, editors.EDITORS)
        known = ", ".join(editors.EDITORS)
        raise UsageError(
            f"there is no configuration for {name!r}",
            hint=f"did you mean {near}?" if near else f"the editors: {known}",
        )
    kernel = _kernel(guest) if clangd else None
    source = None if kernel is None else kernel.source
    wanted = editors.Wanted(guest=guest, command=_command())
    files = list(editors.EDITORS[name](wanted))
    if kernel is not None and kernel.vmlinux is not None and source is not None:
        files += _for_clangd(kernel, kernel.vmlinux.parent, source, write=write)
    for each in files:
        if write:
            _write(each)
        else:
            render.put(f"# {each.path}\n{each.text}")


def _command() -> tuple[str, ...]:
    """Return the words that run this vmdebug: editors have a PATH of their own."""
    import shutil
    import sys

    found = shutil.which("vmdebug")
    beside = Path(sys.argv[0]).absolute()
    return (str(beside),) if beside.name == "vmdebug" else (found or "vmdebug",)


def _kernel(guest: str | None) -> Kernel | None:
    """Return the kernel of the guest; None if it is not built yet."""
    from vmdebug import sources
    from vmdebug.deadline import BUILD_SECONDS, Deadline
    from vmdebug.errors import VmdebugError

    try:
        with render.progress() as report:
            wanted = options.given(guest)
            deadline = Deadline.after(BUILD_SECONDS)
            return sources.resolve(wanted, report=report, deadline=deadline, dry_run=True).kernel
    except VmdebugError as error:
        if guest is not None:
            raise
        render.tell(f"note: no settings for clangd: {error.message}")
        return None


def _for_clangd(kernel: Kernel, build: Path, source: Path, *, write: bool) -> list[EditorFile]:
    from vmdebug.faces import compile_commands, editors

    if write:
        with render.progress() as report:
            count = compile_commands.write(build, _commands(kernel, build, source, report))
        render.tell(f"{build / compile_commands.NAME}: {count} files")
        if source != build:
            render.tell(f"for clangd, open the sources in {source}")
    return [editors.clangd(build)]


def _commands(kernel: Kernel, build: Path, source: Path, report: Report) -> Iterator[Command]:
    """Yield the commands that have built the kernel."""
    from vmdebug.faces import compile_commands
    from vmdebug.kimage import units
    from vmdebug.progress import Step

    found = list(compile_commands.commands(build))
    # The build of the builtin kernel keeps those of a few files, of no use to an editor.
    headers = next(build.glob("arch/*/include/generated"), None)
    complete = any(each.file.endswith("/init/main.c") for each in found)
    if complete or kernel.vmlinux is None or headers is None:
        yield from found
        return
    recorded = compile_commands.recorded(units.read(kernel.vmlinux), source, headers.parents[1].name)
    for number, each in enumerate(recorded):
        report(Step("reading the compiler's options in vmlinux", done=number))
        yield each


def _write(file: EditorFile) -> None:
    """Write a file, unless it exists with other content and is not ours."""
    from vmdebug.errors import HostError
    from vmdebug.paths import write_atomically

    path = Path(file.path).expanduser()
    try:
        before = path.read_text() if path.exists() else None
        if before == file.text:
            render.tell(f"{path}: unchanged")
        elif before is not None and not file.whole:
            render.tell(f"{path} exists; add to it:")
            render.put(file.text)
        else:
            write_atomically(path.absolute(), file.text.encode())
            render.tell(f"{path}: written")
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}", hint="leave out --write to print it"
        ) from error
