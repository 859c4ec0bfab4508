"""`vmdebug snapshot`: saves the state of a VM under a tag, and restores it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.vm.snapshot import Snapshot

app = verb.new_app()

Name = Annotated[str, typer.Argument(metavar="NAME", help="The VM.", autocompletion=verb.complete_vm)]
Tag = Annotated[str | None, typer.Argument(metavar="TAG", help="The snapshot; by default the newest.")]


@app.callback()
def snapshot() -> None:
    """Save and restore the state of a VM.

    A snapshot has memory, devices and qcow2 disks, and takes a tenth of a second. It ends with the VM.
    """


@app.command(
    epilog=verb.examples("vmdebug snapshot save base", "vmdebug snapshot save base before-the-crash"),
)
def save(
    name: Name,
    tag: Annotated[
        str | None, typer.Argument(metavar="TAG", help="Name of the snapshot; by default a number.")
    ] = None,
) -> None:
    """Save a snapshot; a running guest continues."""
    from vmdebug import vm
    from vmdebug.debugger.ownership import VmOwner

    machine = vm.find(name)
    with VmOwner.claim(machine.rundir.attach_lock, machine.name):
        called = tag or _free([each.tag for each in machine.snapshots()])
        machine.snapshot(called)
    render.tell(f"{machine.name}: saved {called}; restore it: vmdebug snapshot load {machine.name} {called}")


@app.command(
    epilog=verb.examples("vmdebug snapshot load base", "vmdebug snapshot load base before-the-crash"),
)
def load(name: Name, tag: Tag = None) -> None:
    """Restore a snapshot; a running guest continues from it.

    A guest that has panicked is set running, too.
    """
    from vmdebug import vm
    from vmdebug.debugger.ownership import VmOwner

    machine = vm.find(name)
    with VmOwner.claim(machine.rundir.attach_lock, machine.name):
        called = tag or _newest(machine.name, machine.snapshots())
        machine.restore(called)
    render.tell(f"{machine.name}: restored {called}, {machine.status()}")


@app.command("list", epilog=verb.examples("vmdebug snapshot list base"))
def listing(name: verb.VmName = None, *, as_json: verb.Json = False) -> None:
    """List snapshots, oldest first."""
    import msgspec

    from vmdebug import vm

    machine = vm.find(name)
    found = machine.snapshots()
    if as_json:
        render.put_json([msgspec.structs.asdict(each) for each in found])
    elif found:
        rows = [
            [
                each.tag,
                time.strftime("%F %T", time.localtime(each.time)),
                f"{each.guest_time:.1f} s",
                f"{each.bytes / 1e6:.0f} MB",
            ]
            for each in found
        ]
        render.put_table(["TAG", "TAKEN", "GUEST TIME", "SIZE"], rows)
    else:
        render.tell(f"{machine.name} has no snapshots; `vmdebug snapshot save {machine.name}` takes one")


@app.command(epilog=verb.examples("vmdebug snapshot delete base before-the-crash"))
def delete(name: Name, tag: Annotated[str, typer.Argument(metavar="TAG", help="The snapshot.")]) -> None:
    """Delete a snapshot."""
    from vmdebug import vm

    machine = vm.find(name)
    machine.delete_snapshot(tag)
    render.tell(f"{machine.name}: deleted {tag}")


def _free(taken: list[str]) -> str:
    return next(tag for tag in map(str, range(1, len(taken) + 2)) if tag not in taken)


def _newest(name: str, found: tuple[Snapshot, ...]) -> str:
    if not found:
        raise UsageError(f"{name} has no snapshots", hint=f"take one: vmdebug snapshot save {name}")
    return found[-1].tag
