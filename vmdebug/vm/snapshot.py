"""Snapshots of a VM: its memory, devices and disks under a tag; loading one takes a tenth of a second.

QEMU stores snapshots in qcow2 images, with the jobs `snapshot-save`, `-load` and `-delete`; see
qapi/migration.json. For the memory, vmdebug adds an image that no device uses at a guest's first snapshot: an
unnamed file, which the kernel frees when QEMU ends.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vmdebug import paths
from vmdebug.channel.log import death
from vmdebug.errors import HostError, QmpError, UsageError, VmError
from vmdebug.guest import ROOT_TAG
from vmdebug.vm import memfd, qcow2, rundir, runtime_directory

if TYPE_CHECKING:
    from vmdebug.vm.qmp import Event, Qmp

NODE = "vmdebug-state"
"""Name of the block node that stores the memory; "NODE-file" is the node of its file."""

_JOB = "vmdebug-snapshot"

_FULL = r"No space left|while writing VM state: Input/output error"
"""QEMU's messages about a full file system; see save_snapshot of migration/savevm.c."""

_HINTS = (
    (
        ROOT_TAG,
        "its root directory is shared over 9p: start it with --root-image always, or --root debian:SUITE",
    ),
    (
        r"vhost-user-fs",
        "it has a directory over virtiofs: start it with --root-image always, or without --share (use cp)",
    ),
    (r"VirtFS|9p", "unmount the 9p shares in the guest: umount -a -t 9p"),
    (
        r"does not support snapshots|No block device",
        "convert the disk to qcow2: qemu-img convert -O qcow2",
    ),
    (_FULL, "set TMPDIR to a directory with enough space for the guest's memory"),
    (r"non-migratable|not migratable", "remove that device from the guest"),
)
"""QEMU's messages about failed snapshots, with hints."""


def hint_for(error: str) -> str:
    """Return what to do about QEMU's message that it cannot save a guest; "" if that is unknown."""
    return next((hint for pattern, hint in _HINTS if re.search(pattern, error)), "")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot.

    Args:
        tag: Its name.
        bytes: The size of its memory and devices, without disks.
        time: When it was taken, in seconds since the epoch.
        guest_time: How long the guest had run when it was taken, in seconds.
    """

    tag: str
    bytes: int
    time: float
    guest_time: float


def save(qmp: Qmp, tag: str, *, vm: str) -> None:
    """Take a snapshot. Afterwards a running guest continues, and a stopped one stays stopped.

    Args:
        qmp: A connection to QEMU, which has the deadline.
        tag: The snapshot's name.
        vm: The VM's name, for messages.

    Raises:
        UsageError: the tag is invalid or taken.
        HostError: this QEMU cannot take snapshots.
        VmError: this guest cannot be saved: a 9p share is mounted, a disk is not qcow2.
        GuestDiedError: QEMU has ended.
        DeadlineError: it took too long.
    """
    _check(tag)
    nodes = _nodes(qmp)
    if tag in _tags(nodes):
        raise UsageError(
            f"{vm} already has a snapshot {tag}",
            hint=f"choose another tag, or delete that one: vmdebug snapshot delete {vm} {tag}",
        )
    if NODE not in nodes:
        _make_room(qmp)
        nodes = _nodes(qmp)
    _run_on(qmp, f"cannot take the snapshot {tag} of {vm}", "snapshot-save", tag, nodes)


def load(qmp: Qmp, tag: str, *, vm: str, console_log: Path, run: bool = True) -> None:
    """Load a snapshot. Afterwards a running guest continues, and a stopped one stays stopped.

    A guest that has panicked since the snapshot is set running.

    Args:
        qmp: A connection to QEMU, which has the deadline.
        tag: The snapshot's name.
        vm: The VM's name, for messages.
        console_log: The console's log, into which a mark is written.
        run: Whether to set a guest running that has panicked; if not, GDB does it.

    Raises:
        UsageError: there is no such snapshot; the hint lists the existing ones.
        VmError: it cannot be loaded.
        GuestDiedError: QEMU has ended.
        DeadlineError: it took too long.
    """
    nodes = _known(qmp, tag, vm)
    panicked = qmp.execute("query-status")["status"] == "guest-panicked"
    _run_on(qmp, f"cannot load the snapshot {tag} of {vm}", "snapshot-load", tag, nodes)
    # QEMU has also opened the log for appending, so neither overwrites the other's text.
    try:
        with console_log.open("ab", buffering=0) as log:
            log.write(death.restored(tag))
    except OSError as error:
        raise runtime_directory.host_error(f"write {console_log}", error) from error
    finally:
        if panicked and run:
            qmp.execute("cont")


def load_unmarked(qmp: Qmp, tag: str, *, vm: str) -> None:
    """Load a snapshot of a stopped guest without a word in the console's log.

    Args:
        qmp: A connection to QEMU, which has the deadline.
        tag: The snapshot's name.
        vm: The VM's name, for messages.

    Raises:
        VmdebugError: see `load`.
    """
    _run_on(qmp, f"cannot load the snapshot {tag} of {vm}", "snapshot-load", tag, _known(qmp, tag, vm))


def delete(qmp: Qmp, tag: str, *, vm: str) -> None:
    """Delete a snapshot.

    Args:
        qmp: A connection to QEMU, which has the deadline.
        tag: The snapshot's name.
        vm: The VM's name, for messages.

    Raises:
        UsageError: there is no such snapshot; the hint lists the existing ones.
        VmError: it cannot be deleted.
        GuestDiedError: QEMU has ended.
        DeadlineError: it took too long.
    """
    nodes = _known(qmp, tag, vm)
    _run_on(qmp, f"cannot delete the snapshot {tag} of {vm}", "snapshot-delete", tag, nodes)


def every(qmp: Qmp) -> tuple[Snapshot, ...]:
    """Return all snapshots, the oldest first.

    Raises:
        GuestDiedError: QEMU has ended.
        DeadlineError: QEMU does not answer.
    """
    return tuple(sorted(_tags(_nodes(qmp)).values(), key=lambda each: each.time))


def _check(tag: str) -> None:
    if not rundir.NAME.fullmatch(tag):
        raise UsageError(
            f"{tag!r} cannot be a snapshot's tag",
            hint=rundir.NAME_HINT,
        )


def _known(qmp: Qmp, tag: str, vm: str) -> Mapping[str, Any]:
    nodes = _nodes(qmp)
    there = _tags(nodes)
    if tag not in there:
        hint = (
            f"its snapshots are: {', '.join(there)}"
            if there
            else f"take one: vmdebug snapshot save {vm} {tag}"
        )
        raise UsageError(f"{vm} has no snapshot {tag}", hint=hint)
    return nodes


def _nodes(qmp: Qmp) -> Mapping[str, Any]:
    """Return the block nodes of a snapshot by name: the disks that the guest writes, and vmdebug's image."""
    found = {}
    for device in qmp.execute("query-block"):
        inserted = device.get("inserted")
        if inserted is not None and not inserted["ro"] and not _never_written(inserted):
            found[inserted["node-name"]] = inserted
    for node in qmp.execute("query-named-block-nodes", {"flat": True}):
        if node["node-name"] == NODE:
            found[NODE] = node
    return found


def _never_written(node: Mapping[str, Any]) -> bool:
    """Return whether a disk is an image of a file system that Linux cannot write.

    The store of a NixOS VM with `virtualisation.useNixStoreImage` is such a disk, and QEMU opens it for
    writing. See fs/erofs/erofs_fs.h and fs/squashfs/squashfs_fs.h of Linux for the magic numbers.
    """
    if node["drv"] != "raw":
        return False
    try:
        with Path(node["file"]).open("rb") as disk:
            start = disk.read(1028)
    except (OSError, ValueError):
        return False  # an unnamed file, or no file
    return start[1024:] == b"\xe2\xe1\xf5\xe0" or start.startswith(b"hsqs")


def _tags(nodes: Mapping[str, Any]) -> dict[str, Snapshot]:
    """Return the snapshots with memory, which are in vmdebug's image."""
    return {
        each["name"]: Snapshot(
            tag=each["name"],
            bytes=each["vm-state-size"],
            time=each["date-sec"] + each["date-nsec"] / 1e9,
            guest_time=each["vm-clock-sec"] + each["vm-clock-nsec"] / 1e9,
        )
        for each in nodes.get(NODE, {}).get("image", {}).get("snapshots", ())
    }


def _make_room(qmp: Qmp) -> None:
    """Add an image for snapshots to QEMU, in an unnamed file.

    Raises:
        HostError: this QEMU has no QMP command for snapshots, or the file cannot be made.
    """
    known = {each["name"] for each in qmp.execute("query-commands")}
    if "snapshot-save" not in known:
        raise HostError(
            "this QEMU lacks the QMP command snapshot-save, which QEMU 6.0 added", hint="install a newer QEMU"
        )
    place = rundir.disk_directory()
    fd = memfd.create("snapshots", place)
    try:
        os.pwrite(fd, qcow2.empty(), 0)
        added = qmp.execute("add-fd", {}, fds=(fd,))
    except OSError as error:
        refused = runtime_directory.host_error(f"make the image for snapshots in {place}", error, place)
        raise HostError(
            refused.message, hint="set TMPDIR to a directory with enough space for the guest's memory"
        ) from error
    finally:
        os.close(fd)
    file = f"{NODE}-file"
    path = f"/dev/fdset/{added['fdset-id']}"
    with contextlib.ExitStack() as undo:
        undo.callback(qmp.execute, "remove-fd", added)
        qmp.execute("blockdev-add", {"driver": "file", "node-name": file, "filename": path})
        undo.callback(qmp.execute, "blockdev-del", {"node-name": file})
        qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": NODE, "file": file})
        undo.pop_all()


def _run_on(qmp: Qmp, failure: str, command: str, tag: str, nodes: Mapping[str, Any]) -> None:
    arguments: dict[str, object] = {"tag": tag, "devices": list(nodes)}
    if command != "snapshot-delete":
        arguments["vmstate"] = NODE
    _run(qmp, failure, command, arguments)


def _run(qmp: Qmp, failure: str, command: str, arguments: Mapping[str, object]) -> None:
    """Run a job until it ends, and dismiss it.

    Raises:
        VmError: it failed; the message has QEMU's reason.
    """
    try:
        with qmp.listen("JOB_STATUS_CHANGE") as events:
            qmp.execute(command, {"job-id": _JOB, **arguments})
            events.next(_concluded)
        error = _error(qmp.execute("query-jobs"))
        qmp.execute("job-dismiss", {"id": _JOB})
    except QmpError as refused:
        error = refused.message
    if error:
        hint = hint_for(error)
        place = rundir.disk_directory()
        full = f"; {place}: {paths.file_system(place)}" if re.search(_FULL, error) else ""
        raise VmError(f"{failure}: {error}{full}", hint=hint)


def _concluded(event: Event) -> bool:
    return (event.data["id"], event.data["status"]) == (_JOB, "concluded")


def _error(jobs: Sequence[Mapping[str, Any]]) -> str:
    return next((each.get("error", "") for each in jobs if each["id"] == _JOB), "")
