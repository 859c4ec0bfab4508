"""Moves a guest that QEMU replays to any position of its recording.

A position is a count of executed instructions, QEMU's icount. See docs/devel/replay.rst and
replay/replay-debugging.c of QEMU. Its own reverse debugging is not used: it loads a snapshot for each step,
and from 10.2 on it loses the guest, see `_load_flushed`.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gdb
import vmd_later
import vmd_monitor
import vmd_permanent
import vmd_quiet
import vmd_waker

KEEPS_CODE = (10, 2)
"""The first QEMU that keeps translated code when a stopped guest loads a snapshot."""

KEEPS_SNAPSHOTS = (10, 1)
"""The first QEMU that aborts if a replay deletes a snapshot: `bdrv_snapshot_delete` of block/snapshot.c
asserts that the disk is drained, which `bdrv_drain_all_begin` does not do in a replay."""

_OWN_BYTES = 1 << 30
"""How many bytes of disk snapshots may take that cannot be deleted."""

_FIRMWARE = 100
"""Instructions at the begin of a recording that are translated once, for ever: they are in the firmware's
ROM; or, where a recording continues a guest, those of vmdebug's agent and of the kernel, which stay."""

_NEAR, _FAR = 300_000, 3_000_000
"""How far before a position its own snapshot is, and at which distance of the others it is worth taking."""

_SEEK_SECONDS = 60.0
"""How long QEMU may take to load the first snapshot of a replay."""

_TAG = re.compile(r"i\d+\.(?P<size>\d+)")
"""A snapshot's tag has the size of the console's log there; see `vmdebug/vm/replay_control.py`."""

_own: list[str] = []
"""The tags of the snapshots that `keep` has taken; one, unless it cannot be deleted."""

_REPLAYS = re.compile(r"Replaying execution .*instruction count = (\d+)")
_SNAPSHOT = re.compile(
    r"\s*\S+\s+(?P<tag>\S+)\s+(?P<size>[0-9.]+) (?P<unit>[KMG]i)?B\s.*\s(?P<icount>\d+)\s*$"
)
_UNITS = {None: 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


class Snapshot(NamedTuple):
    """A snapshot of the replay: its position, its name, and its size on disk."""

    position: int
    tag: str
    bytes: int


def replaying() -> bool:
    """Whether the guest is a replay of a recording."""
    return _position() is not None


def position() -> int:
    """Return the number of instructions that the guest has executed.

    Raises:
        gdb.GdbError: the guest is no replay.
    """
    found = _position()
    if found is None:
        raise gdb.GdbError(
            "the guest is not a replay of a recording: its past is not known\n"
            "record it with `vmdebug start --record`, and then use `vmdebug replay`"
        )
    return found


def snapshots() -> list[Snapshot]:
    """Return the snapshots in the order of their positions, without the one of QEMU, `start_debugging`."""
    rows = [found for line in vmd_monitor.ask("info snapshots") if (found := _SNAPSHOT.match(line))]
    ours = (found for found in rows if _TAG.fullmatch(found["tag"]))
    return sorted(
        Snapshot(int(found["icount"]), found["tag"], int(float(found["size"]) * _UNITS[found["unit"]]))
        for found in ours
    )


def goto(wanted: int) -> None:
    """Move the guest to a position: the next instruction is the one after `wanted` instructions.

    Breakpoints do not stop it on the way.

    Raises:
        gdb.GdbError: the recording does not have that position.
        KeyboardInterrupt: the user stopped it on the way.
    """
    _check(wanted)
    with vmd_permanent.judged_again(), without_breakpoints():
        now = position()
        start = _before(wanted)
        if now > wanted or start.position > now:
            _load(start)
        run_to(wanted)


def goto_again(wanted: int) -> None:
    """Move to a position as `goto` does, and make the next moves near it quick.

    A snapshot shortly before it is taken on the way, and replaces the previous one of its kind.
    """
    with without_breakpoints():
        if wanted - _before(wanted).position > _FAR:
            keep(wanted - _NEAR)
        goto(wanted)


def keep(wanted: int) -> None:
    """Move to a position and take a snapshot there, which replaces the previous one of its kind.

    It does nothing if another snapshot is so near that it would save little, or if there is no room for it.
    """
    if wanted > begin() and wanted - _before(wanted).position > _FAR - _NEAR and _has_room():
        with without_breakpoints():
            goto(wanted)
            _save_own()


def run_to(wanted: int) -> None:
    """Run forward to a position; only breakpoints that return False from `stop` may be inserted.

    Raises:
        KeyboardInterrupt: the user stopped it on the way.
        gdb.GdbError: it stopped for another reason.
    """
    if position() != wanted and advance(wanted) < wanted:
        raise KeyboardInterrupt
    guard()


def advance(wanted: int) -> int:
    """Run forward to a position after the present one, or to a breakpoint; return where the guest is.

    Afterwards nothing stops it at the end of the recording; see `guard`.

    Raises:
        gdb.GdbError: it stopped for another reason.
    """
    vmd_monitor.ask(f"replay_break {wanted}")
    try:
        with vmd_waker.awake():
            quietly("continue")
    except gdb.error as error:
        raise gdb.GdbError(f"the recording ended before instruction {wanted}: {error}") from error
    now = position()
    if now != wanted:
        vmd_monitor.ask("replay_delete_break")
    if now > wanted:
        raise gdb.GdbError(f"the replay ran to instruction {now} instead of {wanted}")
    return now


def guard() -> None:
    """Stop the guest at the end of the recording, where QEMU would end."""
    end = _end()
    if end is not None and position() < end:
        vmd_monitor.ask(f"replay_break {end}")


def facts() -> dict[str, object]:
    """Return what is known about the replay; see `vmdebug.replaying.Replaying`."""
    directory = vmd_waker.directory()
    if not directory.is_absolute():  # a gdbstub on TCP: no replay has one
        return {}
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, object] = json.loads((directory / "replay.json").read_bytes())
        return found
    return {}


def clock() -> Callable[[], float] | None:
    """Return what tells the time in a replay, that of the executed instructions in seconds; None elsewhere.

    The host's time is another one in each replay.
    """
    shift = facts().get("shift")
    return (lambda: position() * 2**shift / 1e9) if isinstance(shift, int) else None


def quietly(command: str) -> None:
    """Run the guest by a command of GDB, without a word about its stop."""
    with contextlib.nullcontext() if vmd_later.has_interpreter() else vmd_quiet.quiet():
        gdb.execute(command, to_string=True)


@contextlib.contextmanager
def without_breakpoints() -> Iterator[None]:
    """Disable the user's breakpoints for the block."""
    enabled = [each for each in gdb.breakpoints() if each.enabled]
    for each in enabled:
        each.enabled = False
    try:
        yield
    finally:
        for each in enabled:
            if each.is_valid():
                each.enabled = True


def _check(wanted: int) -> None:
    """Refuse a position outside of the recording: a guest sent there would run off its end."""
    first, end = begin(), _end()
    if wanted < first or (end is not None and wanted > end):
        bounds = f"begin at {first}" if end is None else f"are {first} to {end}"
        raise gdb.GdbError(f"the recording has no position {wanted}: its positions {bounds}")


def begin() -> int:
    """Return the first position: 0, unless the recording continues a guest that has run before."""
    first = facts().get("begin")
    return first if isinstance(first, int) else 0


def _end() -> int | None:
    end = facts().get("end")
    return end if isinstance(end, int) else None


def _position() -> int | None:
    try:
        words = " ".join(vmd_monitor.ask("info replay"))
    except gdb.error:
        return None
    found = _REPLAYS.search(words)
    return int(found[1]) if found else None


def _before(wanted: int) -> Snapshot:
    there = snapshots()
    index = bisect.bisect_right([each.position for each in there], wanted) - 1
    if index < 0:
        raise gdb.GdbError(f"the recording has no snapshot before instruction {wanted}")
    return there[index]


def _has_room() -> bool:
    """Return whether `keep` may take a snapshot."""
    return not _keeps_all() or sum(each.bytes for each in snapshots() if each.tag in _own) < _OWN_BYTES


def _keeps_all() -> bool:
    return _version() >= KEEPS_SNAPSHOTS


def _save_own() -> None:
    here = position()
    if any(each.position == here for each in snapshots()):
        return
    while _own and not _keeps_all():
        vmd_monitor.ask(f"delvm {_own.pop()}")
    log = _log()
    tag = f"i{here:016}.{log.stat().st_size if log.exists() else 0}"
    if not any(vmd_monitor.ask(f"savevm {tag}")):
        _own.append(tag)


def _log() -> Path:
    return vmd_waker.directory() / "console.log"


def _load(snapshot: Snapshot) -> None:
    if _version() >= KEEPS_CODE:
        _load_flushed(snapshot)
    else:
        _loadvm(snapshot)
    size = _TAG.fullmatch(snapshot.tag)
    if size is not None:
        _cut_log(int(size["size"]))
    gdb.execute("maint flush register-cache", to_string=True)
    gdb.execute("maint flush dcache", to_string=True)


def _cut_log(size: int) -> None:
    """Let the console's log end at the guest's position; QEMU appends to it."""
    with contextlib.suppress(OSError, KeyError), _log().open("r+b", buffering=0) as log:
        recorded = Path(str(facts()["recording"])) / "console.out"
        log.write(recorded.read_bytes()[:size])
        log.truncate(size)


def _loadvm(snapshot: Snapshot) -> None:
    said = vmd_monitor.ask(f"loadvm {snapshot.tag}")
    if any(said):
        raise gdb.GdbError(f"QEMU cannot load the snapshot {snapshot.tag}: {' '.join(said)}")


def _load_flushed(snapshot: Snapshot) -> None:
    """Load a snapshot, and discard the translated code of what was in memory before.

    QEMU discards it when a running guest stops to load a snapshot (`tcg_vm_change_state` in
    accel/tcg/tcg-all.c), not when it is stopped already. So the guest is set running and sent to its first
    position, both in one message. QEMU tells GDB nothing about that, because GDB waits for no stop.
    """
    first = _before(begin())
    _loadvm(first)  # from the end of the recording, QEMU might run off it
    run_to(first.position + _FIRMWARE)  # a seek to the present position loads nothing
    _seek_running(first.position)
    if snapshot != first:
        _loadvm(snapshot)


def _seek_running(wanted: int) -> None:
    try:
        with vmd_waker.client() as qmp:
            qmp.ask({"execute": "cont"}, {"execute": "replay-seek", "arguments": {"icount": wanted}})
            end = time.monotonic() + _SEEK_SECONDS
            while qmp.ask({"execute": "query-status"})[0]["running"]:
                if time.monotonic() > end:
                    raise gdb.GdbError(f"waited {_SEEK_SECONDS:g} s for QEMU to get to instruction {wanted}")
    except OSError as error:
        raise gdb.GdbError(f"QEMU does not answer on QMP: {error}\nis another client connected?") from error


def _version() -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)", " ".join(vmd_monitor.ask("info version")))
    return (int(found[1]), int(found[2])) if found else (0, 0)
