"""`vmdebug recording`: lists, describes, packs, checks and deletes recordings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmdebug.cli import render, verb
from vmdebug.cli.replay import complete_recording

if TYPE_CHECKING:
    from vmdebug.recording.manifest import Ended, Manifest

app = verb.new_app()

Name = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="The recording: a path, or its name.", autocompletion=complete_recording
    ),
]


@app.callback()
def recording() -> None:
    """List, describe, pack, check and delete recordings.

    `vmdebug start --record` makes one, and `vmdebug replay` replays it.
    """


@app.command("list", epilog=verb.examples("vmdebug recording list"))
def listing(*, as_json: verb.Json = False) -> None:
    """List recordings, by name."""
    from vmdebug.errors import VmdebugError
    from vmdebug.recording import store

    rows = []
    for path in store.every():
        try:
            rows.append(_facts(path))
        except VmdebugError as error:
            render.error(error)
    if as_json:
        render.put_json(rows)
    elif rows:
        table = [
            [
                row["name"],
                row["guest"],
                row["status"],
                _instructions(row["icount"]),
                f"{row['bytes'] / 1e6:.1f} MB",
                time.strftime("%F %T", time.localtime(row["created_at"])),
            ]
            for row in rows
        ]
        render.put_table(["NAME", "GUEST", "STATUS", "INSTRUCTIONS", "LOG", "BEGAN"], table)
    else:
        render.tell(f"there are no recordings in {store.directory()}; `vmdebug start --record` makes one")


@app.command(epilog=verb.examples("vmdebug recording show crash.vmdrec"))
def show(name: Name, *, as_json: verb.Json = False) -> None:
    """Describe a recording: what was started, with which QEMU, where it ends, and its failure."""
    from vmdebug import replaying
    from vmdebug.recording import packing, store

    path = packing.opened(store.find(name))
    found = _facts(path)
    if found["icount"] is not None:
        chosen = replaying.choose(path)
        failure = chosen.failure
        found["failure"] = None if failure is None else {"icount": failure.icount, "line": failure.text}
        found["lines"] = len(chosen.lines)
    if as_json:
        render.put_json(found)
        return
    render.put_facts({key: _shown(value) for key, value in found.items()})


@app.command(epilog=verb.examples("vmdebug recording pack crash.vmdrec -o /tmp/crash.vmdrec"))
def pack(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="By default in the current directory."),
    ] = None,
    *,
    symbols: Annotated[bool, typer.Option("--symbols/--no-symbols", help="Include vmlinux.")] = True,
) -> None:
    """Write a recording as one file, which can be sent and replayed elsewhere.

    It has the kernel, its vmlinux, the initramfs and the disks. The other machine needs the same version of
    QEMU.
    """
    from vmdebug.recording import packing, store

    path = store.find(name)
    to = output if output is not None else Path.cwd() / path.name
    with render.progress() as report:
        made = packing.pack(path, to.absolute(), symbols=symbols, report=report)
    render.tell(f"{made}: {made.stat().st_size / 1e6:.1f} MB; replay it: vmdebug replay {made}")


@app.command(epilog=verb.examples("vmdebug recording verify crash.vmdrec"))
def verify(name: Name) -> None:
    """Compare a recording's files with what they were; exit with 4 if one has changed."""
    from vmdebug.recording import packing, store

    for line in packing.verify(packing.opened(store.find(name))):
        render.put(line)


@app.command(epilog=verb.examples("vmdebug recording delete crash.vmdrec"))
def delete(
    names: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="The recordings.", autocompletion=complete_recording),
    ],
) -> None:
    """Delete recordings."""
    from vmdebug.recording import store

    for path in [store.find(name) for name in names]:
        store.delete(path)
        render.tell(f"deleted {path}")


def _facts(path: Path) -> dict[str, Any]:
    """Return the object of `recording list --json`."""
    from vmdebug.recording import ending, files, manifest, packing, store

    directory = packing.opened(path)
    about = manifest.read(files.manifest(directory))
    ended = None if store.recording_process(about) else ending.settle(directory)
    return {
        "name": path.name.removesuffix(files.ENDING),
        "path": str(path),
        "guest": about.spec.guest,
        "status": _status(ended),
        "icount": None if ended is None else ended.icount,
        "seconds": None if ended is None else ended.seconds,
        "bytes": files.log(directory).stat().st_size,
        "created_at": about.created_at,
        **_machine(about),
    }


def _status(ended: Ended | None) -> str:
    if ended is None:
        return "recording"
    return "complete" if ended.complete else "QEMU was killed"


def _machine(about: Manifest) -> dict[str, Any]:
    return {
        "qemu": about.qemu,
        "release": about.spec.kernel.release,
        "build_id": about.spec.kernel.build_id,
        "memory": about.spec.memory,
        "parameters": " ".join(about.spec.parameters),
        "files": [
            {"original": str(each.original), "name": each.name, "bytes": each.bytes, "sha256": each.sha256}
            for each in about.files
        ],
    }


def _instructions(icount: int | None) -> str:
    return "" if icount is None else f"{icount / 1e6:.1f} M"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(f"{each['name'] or each['original']}  {each['bytes']} bytes" for each in value)
    if isinstance(value, dict):
        return f"{value['line']}\nicount {value['icount']}"
    return "none" if value is None else str(value)
