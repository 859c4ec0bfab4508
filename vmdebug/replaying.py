"""Replays a recording: a VM that does again what was recorded, and goes to any position of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from vmdebug import guest, process, recorded_address, vm
from vmdebug.channel.log import headlines
from vmdebug.channel.log.headlines import squeezed
from vmdebug.deadline import LAUNCH_SECONDS, Deadline
from vmdebug.errors import HostError, StateError, UsageError
from vmdebug.guest import LaunchSpec, ReplayMachine
from vmdebug.progress import Report, Step, silent
from vmdebug.recording import ending, event_log, files, manifest, packing, positions, store
from vmdebug.recording.event_log import EventLog
from vmdebug.recording.manifest import Ended, Manifest
from vmdebug.recording.positions import Line, Position
from vmdebug.vm import Vm, features
from vmdebug.vm.clones import saved_guest
from vmdebug.vm.replay_control import Player

REPLAY_SECONDS = 3600.0
"""How long a replay may take to get to its first position."""

SEEK_SECONDS = 600.0
"""How long going to a position may take."""

BUDGET_BYTES = 1 << 30
"""How many bytes of disk the snapshots of a replay may take."""

SETTLED = 1000
"""How many instructions after the begin of a recording that continues a guest its first position is: QEMU 11
stalls if it loads a snapshot of the very begin."""

SNAPSHOTS = 16
"""How many snapshots the first pass takes."""

_STAMP = re.compile(r"^.*\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?")
_COUNT = re.compile(r"-?[0-9]+")
_TIME = re.compile(r"(\d+(?:\.\d+)?)s")


class Replaying(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay is of; kept in its run directory.

    Args:
        recording: The directory of the recording.
        begin: The first position.
        end: The last position.
        failure: The position of the failure; None if there is none.
        headline: The line of the console that reports it.
        shift: The guest's time for one instruction is 2^shift ns.
        qemu: QEMU's version.
        complete: Whether the recording has its end.
        slide: By how many bytes KASLR has moved the kernel; None: that is not known.
    """

    recording: Path
    begin: int = 0
    end: int
    failure: int | None
    headline: str
    shift: int
    qemu: str
    complete: bool
    slide: int | None = None


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """A recording that is to be replayed.

    Args:
        directory: The recording.
        about: Its manifest.
        ended: Its end.
        log: What QEMU has logged.
        lines: The lines of its console.
    """

    directory: Path
    about: Manifest
    ended: Ended
    log: EventLog
    lines: tuple[Line, ...]

    @property
    def begin(self) -> int:
        """The first position."""
        return self.about.begin and self.about.begin + SETTLED

    @property
    def end(self) -> int:
        """The last position: at the end of the log itself QEMU ends."""
        return max(self.begin, self.ended.icount - 1)

    @property
    def bounds(self) -> tuple[int, int]:
        """The first and the last position."""
        return self.begin, self.end

    @property
    def failure(self) -> Line | None:
        """The first line that reports kernel trouble."""
        return next((line for line in self.lines if _is_headline(line)), None)


def start(
    words: str | None,
    *,
    to: str = "failure",
    name: str | None = None,
    bound: bool,
    report: Report = silent,
    timeout: float = REPLAY_SECONDS,
) -> Vm:
    """Replay a recording up to a position, and leave the guest stopped there.

    Args:
        words: The recording: a path, or its name; None: the newest one.
        to: `start`, `end`, `failure` (the end, if there is none), an instruction count, a time such as
            `2.5s`, or a text on the console.
        name: The name of the VM; None: made from that of the guest.
        bound: Whether it ends with this process.
        report: Called with each step that takes long.
        timeout: Seconds to get there.

    Raises:
        UsageError: there is no such recording or position.
        StateError: it is being recorded.
        HostError: the QEMU that recorded it is not here, or a file of the guest.
        LaunchError: QEMU did not start.
        DeadlineError: it took too long.
    """
    deadline = Deadline.after(timeout)
    chosen = choose(packing.opened(store.newest() if words is None else store.find(words)))
    wanted = named(chosen.lines, to, bounds=chosen.bounds, failure=chosen.failure)
    spec = _spec(chosen, name, deadline=deadline)
    machine = vm.launch(
        spec,
        bound=True,
        report=report,
        timeout=min(LAUNCH_SECONDS, deadline.remaining),
        exact_name=name is not None,
    )
    with contextlib.ExitStack() as undo:
        undo.callback(machine.stop, force=True)
        if chosen.about.begin:
            _load(machine, files.state(chosen.directory), deadline)
        with _player(machine, chosen.directory, chosen.bounds, deadline) as player:
            latest = wanted.latest if isinstance(wanted, Line) else wanted
            _first_pass(player, min(latest, chosen.end), chosen.bounds, report)
            chosen = _anchored(chosen, player)
            chosen = _go(
                player, chosen, named(chosen.lines, to, bounds=chosen.bounds, failure=chosen.failure)
            )
            _write(machine, chosen, _slide(machine, chosen, player))
        undo.pop_all()
    if not bound:
        machine.keep()
    return machine


def choose(path: Path) -> Chosen:
    """Return what is known about a recording.

    Raises:
        UsageError: it is none, or is damaged.
        StateError: it is being recorded.
    """
    about = manifest.read(files.manifest(path))
    ended = ending.settle(path)
    log = event_log.read(files.log(path))
    return Chosen(directory=path, about=about, ended=ended, log=log, lines=positions.read(path, log))


def of(machine: Vm) -> Replaying | None:
    """Return what a VM replays; None if it replays nothing."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return guest.decode(machine.rundir.replay.read_bytes(), Replaying)
    return None


def needed(machine: Vm) -> Replaying:
    """Return what a VM replays.

    Raises:
        StateError: it replays nothing.
    """
    found = of(machine)
    if found is None:
        raise StateError(
            f"{machine.name} is no replay, so it has no positions",
            hint="record a guest, and replay it: vmdebug start --record; vmdebug replay",
        )
    return found


def lines_of(machine: Vm) -> tuple[Line, ...]:
    """Return the lines of the console of a replay, with their positions."""
    try:
        return tuple(msgspec.json.decode(machine.rundir.lines.read_bytes(), type=list[Line]))
    except (OSError, msgspec.MsgspecError):
        return ()


def position(machine: Vm) -> Position:
    """Return where a replay is.

    Raises:
        StateError: the VM is no replay.
        DeadlineError: QEMU does not answer.
    """
    needed(machine)
    return positions.at(lines_of(machine), machine.qmp("query-replay")["icount"])


def goto(machine: Vm, to: str | int, *, timeout: float = SEEK_SECONDS) -> Position:
    """Go to a position of a replay to which no GDB is attached.

    Args:
        machine: The replay.
        to: See `start`.
        timeout: Seconds to get there.

    Raises:
        UsageError: there is no such position.
        StateError: the VM is no replay.
        DeadlineError: it took too long.
    """
    about, target = needed(machine), icount_of(machine, to)
    with _player(machine, about.recording, (about.begin, about.end), Deadline.after(timeout)) as player:
        player.goto(target)
    return positions.at(lines_of(machine), target)


def icount_of(machine: Vm, to: str | int) -> int:
    """Return the instruction count of a position of a replay; of a line that is not exact, the earliest.

    Raises:
        UsageError: there is no such position.
        StateError: the VM is no replay.
    """
    about = needed(machine)
    failure = None if about.failure is None else Line(about.failure, about.failure, 0.0, about.headline)
    found = named(lines_of(machine), str(to), bounds=(about.begin, about.end), failure=failure)
    return min(about.end, found.icount if isinstance(found, Line) else found)


def named(lines: Sequence[Line], to: str, *, bounds: tuple[int, int], failure: Line | None) -> int | Line:
    """Return the instruction count, or the line of the console, that a user names.

    Raises:
        UsageError: there is none.
    """
    begin, end = bounds
    if to == "start":
        return begin
    if to == "end" or (to == "failure" and failure is None):
        return end
    if to == "failure" and failure is not None:
        return failure
    if _COUNT.fullmatch(to):
        if begin <= int(to) <= end:
            return int(to)
        raise UsageError(f"the recording has no position {to}", hint=f"its positions are {begin} to {end}")
    if time := _TIME.fullmatch(to):
        return _at_time(lines, float(time[1]), end)
    found = next((line for line in lines if to in line.text), None)
    if found is None:
        raise UsageError(
            f"no line of the recorded console has the text {to!r}",
            hint="a position is start, end, failure, an instruction count, a time as 2.5s, or such a text",
        )
    return found


def _at_time(lines: Sequence[Line], seconds: float, end: int) -> int:
    if not lines or seconds > lines[-1].seconds:
        last = lines[-1].seconds if lines else 0.0
        raise UsageError(f"the recording has no time {seconds:g}s", hint=f"its console ends at {last:.6f}s")
    after = next(number for number, line in enumerate(lines) if line.seconds >= seconds)
    if after == 0 or lines[after].seconds == seconds:
        return min(end, lines[after].icount)
    before, there = lines[after - 1], lines[after]
    part = (seconds - before.seconds) / (there.seconds - before.seconds)
    return min(end, int(before.icount + part * (there.icount - before.icount)))


def _is_headline(line: Line) -> bool:
    key = squeezed(_STAMP.sub("", line.text)).lstrip()
    return headlines.form(key) is not None


def _spec(chosen: Chosen, name: str | None, *, deadline: Deadline) -> LaunchSpec:
    about = chosen.about
    moved, kernel = {}, about.spec.kernel
    for file in about.files:
        here = chosen.directory / file.name if file.name else file.original
        if not here.exists():
            raise HostError(
                f"a file of the recorded guest is missing: {here}",
                hint="the recording does not contain it: record the guest again",
            )
        if file.name:
            moved[str(file.original)] = str(here)
        if file.original == kernel.vmlinux:
            kernel = msgspec.structs.replace(kernel, vmlinux=here)
        if file.original == kernel.image:
            kernel = msgspec.structs.replace(kernel, image=here)
    machine = ReplayMachine(
        recording=chosen.directory,
        argv=about.argv,
        run=about.run,
        qemu=_qemu(about, deadline),
        log=files.log(chosen.directory),
        moved=moved,
    )
    return msgspec.structs.replace(
        about.spec,
        name=name or f"{about.spec.name}-replay",
        machine=machine,
        kernel=kernel,
        record=None,
        halt=True,
        asked=None,
        notes=(),
        tcp=None,
    )


def _qemu(about: Manifest, deadline: Deadline) -> Path:
    """Return the QEMU that recorded a guest, or another one of the same version."""
    found = []
    name = about.qemu_file.name
    for candidate in (about.qemu_file, process.find(name, package="qemu-system")):
        with contextlib.suppress(HostError):
            version = features.of(candidate, deadline=deadline).version
            if version == about.qemu:
                return candidate
            found.append(f"{candidate} is {version}")
    raise HostError(
        f"QEMU {about.qemu} recorded this guest, and only the same version can replay it: {'; '.join(found)}",
        hint=f"put QEMU {about.qemu} first on PATH",
    )


def _load(machine: Vm, state: Path, deadline: Deadline) -> None:
    """Give a replay the memory and devices that its recording began with."""
    with state.open("rb") as stream:
        saved_guest.load(machine, stream.fileno(), shared=False, run=False, deadline=deadline)


def _slide(machine: Vm, chosen: Chosen, player: Player) -> int | None:
    """Return by how many bytes KASLR has moved the kernel; None if that is not known."""
    spec = machine.state.spec
    if "nokaslr" in spec.parameters:
        return 0
    return recorded_address.find(
        spec.kernel, chosen.directory, chosen.ended, player, lines=chosen.lines, end=chosen.end
    )


def _write(machine: Vm, chosen: Chosen, slide: int | None) -> None:
    failure = chosen.failure
    about = Replaying(
        recording=chosen.directory,
        begin=chosen.begin,
        end=chosen.end,
        failure=None if failure is None else failure.icount,
        headline="" if failure is None else failure.text,
        shift=chosen.about.shift,
        qemu=chosen.about.qemu,
        complete=chosen.ended.complete,
        slide=slide,
    )
    machine.rundir.lines.write_bytes(msgspec.json.encode(chosen.lines))
    machine.rundir.replay.write_bytes(guest.encode(about))


def _anchored(chosen: Chosen, player: Player) -> Chosen:
    """Return a recording with more exact lines: the snapshots of its replay are anchors."""
    anchors = [(mark.icount, mark.console) for mark in player.marks()]
    console = files.console(chosen.directory).read_bytes()
    lines = positions.of_lines(console, chosen.log.output, anchors)
    return msgspec.structs.replace(chosen, lines=lines)


def _go(player: Player, chosen: Chosen, to: int | Line) -> Chosen:
    """Go to a position, and return the recording with the exact position of the line, if it is one."""
    if isinstance(to, int) or to.exact:
        player.goto(min(chosen.end, to if isinstance(to, int) else to.icount))
        return chosen
    number = chosen.lines.index(to)
    there = player.goto_output(to.byte + 1, chosen.log.output[to.first : to.last + 1])
    exact = msgspec.structs.replace(to, icount=there, latest=there)
    return msgspec.structs.replace(chosen, lines=(*chosen.lines[:number], exact, *chosen.lines[number + 1 :]))


@contextlib.contextmanager
def _player(machine: Vm, recording: Path, bounds: tuple[int, int], deadline: Deadline) -> Iterator[Player]:
    recorded = files.console(recording).read_bytes()
    log = machine.rundir.console_log
    with machine.connected(timeout=deadline.left("the replay")) as qmp:
        yield Player(qmp, log, recorded, name=machine.name, begin=bounds[0], end=bounds[1], deadline=deadline)


def _first_pass(player: Player, target: int, bounds: tuple[int, int], report: Report) -> None:
    """Run the guest to its first position, and take snapshots on the way."""
    begin, end = bounds
    step = max(1, (end - begin) // SNAPSHOTS)
    player.run_to(begin)
    player.save()
    for stop in (*range(begin + step, target, step), target):
        done = 100 * (stop - begin) // max(1, target - begin)
        report(Step("replaying", done=done, total=100, note="%"))
        player.run_to(stop)
        if sum(each.bytes for each in player.marks()) < BUDGET_BYTES:
            player.save()
