"""Hunts: seeds become schedules and exact QEMU arguments, failures groups, and schedules simpler ones."""

from __future__ import annotations

import itertools
import pickle
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdebug import guest
from vmdebug.channel.log.trouble import Trouble
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError, VmdebugError, VmError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.hunting import holds, hunt, minimising, outcome, schedule
from vmdebug.hunting.guest import as_paused, scheduled
from vmdebug.hunting.held_guest import with_cpus
from vmdebug.hunting.hunted_session import NotInHuntError, SteppedSession
from vmdebug.hunting.mailbox import ADDRESS, Mailbox, OtherRunError, Piece
from vmdebug.hunting.outcome import Job, Outcome
from vmdebug.hunting.pool import LocalPool
from vmdebug.hunting.run import Runner
from vmdebug.hunting.schedule import Schedule
from vmdebug.hunting.statistics import wilson
from vmdebug.hunting.stub import Stub
from vmdebug.hunting.worker import Task
from vmdebug.vm.machine import Vm

SPEC = LaunchSpec(
    name="linux",
    guest="builtin",
    machine=OwnMachine(initrd=Path("/i.cpio")),
    kernel=Kernel(image=Path("/bzImage"), origin="the builtin kernel", arch="x86_64"),
    parameters=("console=ttyS0",),
    cpus=1,
)


FIRST_HOLDS = [(0, 1, 1, 0, None, 3, 3), (0, 0, None, 3, 0, 10, 1), (0, 0, 0, 1, 0, 30, 0)]


def test_a_seed_gives_the_same_schedule_in_each_version() -> None:
    assert [str(schedule.of_seed(seed)) for seed in range(1, 6)] == [
        "seed=1,shift=7,gap=1000",
        "seed=2,shift=6,gap=300",
        "seed=3,shift=7,gap=3000",
        "seed=4,shift=5,gap=300",
        "seed=5,shift=5,gap=1000",
    ]


def test_seeds_cover_all_knobs() -> None:
    made = [schedule.of_seed(seed) for seed in range(200)]
    assert {each.shift for each in made} == set(schedule.SHIFTS)
    assert {each.gap for each in made} == set(schedule.GAPS)


def test_a_seed_gives_the_same_holds_in_each_version() -> None:
    first = list(itertools.islice(holds.of_seed(1, points=2, cpus=2), 3))
    assert first == list(itertools.islice(holds.of_seed(1, points=2, cpus=2), 3))
    assert [msgspec.structs.astuple(each) for each in first] == FIRST_HOLDS
    assert first[0].pause == 0, "the first is at once, for a short workload"


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(2, 4))
def test_holds_are_of_the_guests_points_and_cpus_and_end(seed: int, points: int, cpus: int) -> None:
    for each in itertools.islice(holds.of_seed(seed, points=points, cpus=cpus), 20):
        assert each.point < points
        assert each.until is None or each.until < points
        assert each.cpu is None or each.cpu < cpus
        assert 1 <= each.milliseconds <= 30


def test_a_schedule_is_exact_qemu_arguments() -> None:
    assert schedule.qemu_arguments(Schedule(seed=7, shift=6)) == (
        "-icount",
        "shift=6,sleep=off",
        "-rtc",
        "clock=vm,base=2026-01-01T00:00:00",
        "-seed",
        "7",
        "-global",
        "virtio-pci.ioeventfd=off",
        "-global",
        "apic-common.vapic=off",
    )


def test_a_hunted_guest_starts_halted_under_tcg_with_the_agents_steps() -> None:
    spec = scheduled(SPEC, Schedule(seed=7))
    assert (spec.accel, spec.halt, spec.trace_ready) == ("tcg", True, "no")
    assert spec.parameters == ("console=ttyS0", "vmdebug.steps")
    assert spec.qemu_args == schedule.qemu_arguments(Schedule(seed=7))


@pytest.mark.parametrize("changes", [{"cpus": 2}, {"accel": "kvm"}])
def test_what_cannot_be_hunted_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        scheduled(msgspec.structs.replace(SPEC, **changes), Schedule(seed=7))


def test_a_guest_whose_cpus_are_held_has_several_and_can_be_copied() -> None:
    spec = with_cpus(SPEC, 2)
    assert (spec.accel, spec.cpus, spec.trace_ready) == ("tcg", 2, "no")
    for changes in ({"accel": "kvm"}, {"machine": OwnMachine(disk=Path("/d.qcow2"))}):
        with pytest.raises(UsageError):
            with_cpus(msgspec.structs.replace(SPEC, **changes), 2)


@given(
    st.builds(
        Schedule,
        seed=st.integers(0, (1 << 32) - 1),
        shift=st.integers(schedule.BASE_SHIFT, 10),
        gap=st.integers(1, 1 << 30),
        first=st.integers(0, 1000),
        count=st.integers(1, 1000),
    )
)
def test_a_printed_schedule_is_read_again(made: Schedule) -> None:
    assert schedule.parse(str(made)) == made


@pytest.mark.parametrize(
    "text", ["", "shift=5", "seed=x", "seed=1,speed=2", "seed=1,shift=2", "seed=1,shift=99"]
)
def test_a_schedule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        schedule.parse(text)


def test_the_disturbance_of_each_command_differs_and_is_20_bytes() -> None:
    made = Schedule(seed=7, gap=300, first=2, count=5)
    one, two = schedule.disturbance(made, 1), schedule.disturbance(made, 2)
    assert one[8:] == two[8:] == bytes.fromhex("2c0100000200000005000000")
    assert one[:8] != two[:8]
    assert schedule.disturbance(Schedule(seed=7), 1) == b""


def test_wilson() -> None:
    rate = wilson(7, 10)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.3968, 0.8922)
    assert wilson(0, 0) == (0.0, 0.0, 1.0)
    assert wilson(0, 20).low == 0.0
    assert round(wilson(0, 20).high, 4) == 0.1611
    assert wilson(20, 20).high == 1.0
    assert str(rate) == "70.0% (95 %: 39.7% to 89.2%)"


@given(st.integers(1, 10**6).flatmap(lambda runs: st.tuples(st.integers(0, runs), st.just(runs))))
def test_an_interval_contains_the_rate(numbers: tuple[int, int]) -> None:
    rate = wilson(*numbers)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1


SPLAT = """\
[   12.3] BUG kmalloc-64 (Tainted: G O): Object already free
[   12.3] CPU: 0 PID: 58 Comm: sh
[   12.3]  dump_stack_lvl+0x3a/0x4c
[   12.3]  ? race_write+0xb7/0xf0 [race]
[   12.3]  kfree+0xab/0x100"""


def failed(seed: int, text: str = SPLAT) -> Outcome:
    first = text.splitlines()[0].partition("] ")[2]
    trouble = Trouble(kind="bug", headline=first, text=text, complete=True)
    return outcome.of_trouble(Schedule(seed=seed), [trouble], 0.5)


def test_failures_of_one_cause_are_one_group_whatever_their_numbers() -> None:
    groups = outcome.grouped(
        [
            failed(1),
            Outcome(schedule=Schedule(seed=2)),
            failed(3, SPLAT.replace("12.3", "99.1").replace("0xab/", "0xcd/").replace("PID: 58", "PID: 60")),
            failed(4, SPLAT.replace("kfree", "krealloc")),
        ]
    )
    assert [[each.schedule.seed for each in group.outcomes] for group in groups] == [[1, 3], [4]]
    assert groups[0].name == "bug: BUG kmalloc-N (Tainted: G O): Object already free < dump_stack_lvl < kfree"


def test_a_job_is_one_line() -> None:
    job = Job(options=GuestOptions(module=("/x.ko",)), script="/s.py", text="def main(session):\n  pass\n")
    line = outcome.line_of(job)
    assert line.count(b"\n") == 1
    assert guest.decode(line, Job) == job


class Fake:
    """A pool whose runs fail for even seeds."""

    def map(self, schedules: Iterable[Schedule]) -> Iterator[Outcome]:
        for each in schedules:
            yield failed(each.seed) if each.seed % 2 == 0 else Outcome(schedule=each)


USES = {
    "session.gdb": "session.gdb cannot be used in a hunt: the hunt itself uses QEMU's gdbstub",
    "session.console.sendline('ls')": "session.console cannot be used in a hunt: the guest only runs during",
    "session.trace('vfs_read')": "session.trace cannot be used in a hunt: what collects a trace changes",
    "session.snapshot('a')": "session.snapshot cannot be used in a hunt: the guest continues from its saved",
    "session.restart(build=True)": "session.restart cannot be used in a hunt: the guest continues from its",
}


@pytest.mark.parametrize("use", USES)
def test_what_a_hunt_cannot_give_is_an_error_and_no_failure_of_the_run(use: str) -> None:
    runner = Runner(Job(options=GuestOptions(), script="/race.py", text=f"def main(session):\n    {use}\n"))
    vm = SimpleNamespace(shell=SimpleNamespace(run=None))
    with pytest.raises(NotInHuntError) as caught:
        runner._call(SteppedSession(cast("Vm", vm)))
    assert caught.value.message.startswith(USES[use])
    assert 'File "/race.py", line 2, in main' in caught.value.detail
    assert caught.value.exit_status == 2
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - a dask worker does


@pytest.mark.parametrize(
    ("limits", "runs", "failures"),
    [(hunt.Limits(runs=5), 5, 2), (hunt.Limits(failures=1), 2, 1), (hunt.Limits(runs=9, failures=3), 6, 3)],
)
def test_a_hunt_ends_at_the_first_limit(limits: hunt.Limits, runs: int, failures: int) -> None:
    told: list[Outcome] = []
    found = hunt.hunt(Fake(), hunt.seeds(1), limits, ended=told.append, report=lambda _: None)
    assert (found.runs, found.failed, len(told)) == (runs, failures, runs)


def test_a_run_that_nobody_waits_for_is_not_taken_for_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    late = threading.Event()

    def ask(_: object, task: Task) -> Outcome:
        if task.schedule.seed == 2:
            assert late.wait(10)
        return Outcome(schedule=task.schedule)

    monkeypatch.setattr("vmdebug.hunting.pool._ask", ask)
    monkeypatch.setattr(LocalPool, "_start", lambda _: SimpleNamespace())
    with LocalPool(Job(options=GuestOptions(), script="/race.py", text=""), 2) as local:
        assert next(local.map([Schedule(seed=1), Schedule(seed=2)])).schedule.seed == 1
        late.set()
        assert [each.schedule.seed for each in local.map([Schedule(seed=3)])] == [3]
        assert local.record(Schedule(seed=4), RECORDING).schedule.seed == 4


class Recording(LocalPool):
    """A pool whose runs under record have outcomes, or errors, one after the other."""

    def __init__(self, *outcomes: Outcome | VmdebugError) -> None:
        self.outcomes = [*outcomes]

    def record(self, schedule: Schedule, directory: Path) -> Outcome:
        assert directory == RECORDING
        found = self.outcomes.pop(0)
        if isinstance(found, VmdebugError):
            raise found
        return found


RECORDING = Path("/race.vmdrec")
PASSED = Outcome(schedule=Schedule(seed=1))


def recorded(*outcomes: Outcome | VmdebugError) -> hunt.Recorded:
    (group,) = outcome.grouped(failed(seed) for seed in range(1, 9))
    job = Job(options=GuestOptions(), script="/race.py", text="")
    return hunt.record(Recording(*outcomes), job, group, RECORDING, report=lambda _: None)


def test_the_first_failure_that_shows_under_record_is_kept() -> None:
    assert recorded(failed(1)) == hunt.Recorded(directory=RECORDING, schedule=Schedule(seed=1))
    assert recorded(PASSED, failed(4, SPLAT.replace("kfree", "krealloc")), failed(3)) == hunt.Recorded(
        directory=RECORDING, schedule=Schedule(seed=3)
    )


def test_a_failure_that_does_not_show_under_record_is_said_to_be_so() -> None:
    found = recorded(PASSED, PASSED, PASSED)
    assert found.directory is None
    assert found.reason == "it did not show under record, with the seeds 1, 2, 3"
    refused = recorded(UsageError("--record: the root file system is on a disk"))
    assert refused.reason == "it cannot be recorded: --record: the root file system is on a disk"


class Memory:
    """The memory of a guest, as a gdbstub gives it."""

    def __init__(self) -> None:
        self.mailbox = bytearray(1 << 16)

    def read(self, address: int, size: int, *, deadline: Deadline) -> bytes:
        assert not deadline.passed
        return bytes(self.mailbox[address - ADDRESS :][:size])

    def write(self, address: int, data: bytes, *, deadline: Deadline) -> None:
        assert not deadline.passed
        self.mailbox[address - ADDRESS : address - ADDRESS + len(data)] = data

    def stop(self, number: int, at: int, output: bytes = b"") -> None:
        """Be the agent."""
        self.mailbox[:16] = struct.pack("<QII", number, len(output), at)
        self.mailbox[16 : 16 + len(output)] = output


INPUT = 16 + (1 << 15)


def test_a_piece_for_the_agent_has_the_number_of_the_stop() -> None:
    memory, soon = Memory(), Deadline.after(10)
    mailbox = Mailbox(cast("Stub", memory))
    memory.stop(7, 100, b"said")
    assert mailbox.output(deadline=soon) == b"said"
    mailbox.give(b"ls\n", deadline=soon)
    assert memory.mailbox[INPUT + 100 :][:11] == b"\x07\0\0\0\x03\0\0\0ls\n"
    assert mailbox.given == [Piece(7, 100, b"ls\n")]


def test_a_recorded_guest_has_all_pieces_at_its_begin_and_gets_the_same_ones() -> None:
    memory, soon = Memory(), Deadline.after(10)
    pieces = [Piece(7, 0, b"ls\n"), Piece(9, 11, b"pwd\n")]
    Mailbox(cast("Stub", memory)).write(pieces, deadline=soon)
    before = bytes(memory.mailbox[16:])
    mailbox = Mailbox(cast("Stub", memory), pieces)
    memory.stop(7, 0)
    mailbox.give(b"ls\n", deadline=soon)
    memory.stop(9, 11)
    mailbox.give(b"pwd\n", deadline=soon)
    assert memory.mailbox[16:] == before
    with pytest.raises(OtherRunError):
        mailbox.give(b"more\n", deadline=soon)


def test_more_input_than_the_mailbox_holds_is_refused_for_a_recording() -> None:
    with pytest.raises(VmError, match="sends more to the guest"):
        Mailbox(cast("Stub", Memory())).write(
            [Piece(7, 500, b"a"), Piece(8, 0, b"b")], deadline=Deadline.after(10)
        )


def test_the_simplest_schedule_has_no_knob_that_is_not_needed() -> None:
    found = Schedule(seed=3, shift=6, gap=300)
    assert minimising.minimise(found, lambda _: True) == Schedule(seed=3)
    assert minimising.minimise(found, lambda each: each.gap > 0) == Schedule(
        seed=3, gap=300, first=0, count=1
    )


@given(st.integers(0, 500), st.integers(1, 50))
def test_only_the_disturbances_that_are_needed_remain(first: int, count: int) -> None:
    def fails(each: Schedule) -> bool:
        return each.gap > 0 and each.first <= first and each.first + each.count >= first + count

    simplest = minimising.minimise(Schedule(seed=3, shift=6, gap=300), fails)
    assert (simplest.first, simplest.count) == (first, count)


def test_a_saved_state_is_loaded_as_paused() -> None:
    name = b"\x00\x00\x00\x06debug\x00".ljust(104, b"\0")
    state = b"QEVM...globalstate\x00\x00\x00\x00\x00\x00\x00\x01" + name + b"debug\0"
    changed = as_paused(state)
    assert len(changed) == len(state)
    assert b"\x00\x00\x00\x07paused\x00" in changed
    assert changed.endswith(b"debug\0")
    assert as_paused(b"QEVM") == b"QEVM"
