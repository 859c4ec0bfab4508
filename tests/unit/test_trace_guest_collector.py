"""The collector that uses the guest's tracefs, with a reader whose answers a test says."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.test_trace_guest import CALL, FORMAT, NEW, PLAIN, RENAMED, hit_record, page
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, UsageError, VmdebugError, VmError
from vmdebug.trace.activity import Activity
from vmdebug.trace.guest import events, stream
from vmdebug.trace.guest.collector import GuestCollector
from vmdebug.trace.guest.events import Event
from vmdebug.trace.guest.stacks import Stacks
from vmdebug.trace.guest.stream import CommandError, Reader
from vmdebug.trace.probe import Probe, Wanted

STATS = "entries: 0\noverrun: 0\ncommit overrun: 0\nnow ts:     0.000001\ndropped events: 0\nread events: 0\n"
ANSWERS = {
    "host /proc/meminfo": "MemTotal:         500664 kB\n",
    "host /proc/cpuinfo": "processor\t: 0\nprocessor\t: 1\n",
    "read events/task/task_newtask/format": NEW,
    "read events/task/task_rename/format": RENAMED,
    "tasks": "7 cat\n",
    "read kprobe_profile": "  p0_MARK      2      1\n",
}


def frame(kind: str, body: bytes = b"", cpu: int = 0) -> bytes:
    return struct.pack("<IHH", len(body), ord(kind), cpu) + body


class Guest:
    """A reader that answers commands, and remembers them."""

    def __init__(self, answers: dict[str, str | int] | None = None, pages: bytes = b"") -> None:
        self.answers: dict[str, str | int] = {**ANSWERS, **(answers or {})}
        self.pages = pages
        self.commands: list[str] = []
        self.running = True
        self.died: VmdebugError | None = None
        self.over = threading.Event()

    def begin(self, stdin: int, sink: Callable[[bytes], object]) -> Guest:
        self._stdin, self._sink = os.dup(stdin), sink
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def result_by(self, deadline: Deadline) -> object:
        while not self.over.wait(0.01):
            if deadline.passed:
                raise DeadlineError("waited")
        if self.died is not None:
            raise self.died
        return None

    def cancel(self) -> None:
        """Do nothing."""

    def _serve(self) -> None:
        self._sink(frame("R", b"101 44"))
        with os.fdopen(self._stdin) as lines:
            for line in lines:
                self._answer(line.rstrip("\n"))
        self.over.set()

    def _answer(self, command: str) -> None:
        self.commands.append(command)
        if command.startswith("go "):
            return
        if command == "drain":
            self._sink(self.pages + frame("T", struct.pack("<Q", 1 << 40)))
        mark = next((each.split("-")[1] for each in self.commands if each.startswith("instance ")), "")
        found: str | int = ""
        for start, answer in self.answers.items():
            if command.startswith(start) or f"/{start} " in command:
                found = answer
        if command.endswith("/stats"):
            found = self.answers.get("stats", STATS)
        if "/p0_" in command and command.endswith("/format"):
            found = FORMAT
        if isinstance(found, int):
            self._sink(frame("E", f"{found} the log".encode()))
        else:
            self._sink(frame("R", found.replace("MARK", mark).encode()))


def collector(guest: Guest, *traced: Event) -> GuestCollector:
    return GuestCollector(
        guest.begin,
        "vm",
        traced or (PLAIN,),
        notes=("a note",),
        stacks=Stacks(Path("/none"), 0),
        running=lambda: guest.running,
        timeout=5.0,
    )


WANTED = Wanted((Probe("vfs_read", ("count", "text")),))


def test_a_trace_sets_up_its_own_instance_and_reads_its_pages() -> None:
    guest = Guest(pages=frame("D", page(1_000, (500, hit_record(7, 3, b"word\0"))), cpu=1))
    made = collector(guest)
    assert made.start(WANTED).notes == ("a note",)
    assert made.take().hits == ()
    batch = made.stop()
    assert [(hit.cpu, hit.args, hit.task and hit.task.comm) for hit in batch.hits] == [
        (1, {"count": 3, "text": "word"}, "cat")
    ]
    assert batch.notes == ("a note", "1 calls of vfs_read are missing: they came from inside a kprobe")
    (instance, names) = [each.split()[1] for each in guest.commands if each.startswith("instance ")]
    mark = instance.removeprefix("vmdebug-")
    assert names == f"{instance}-names"
    directory = f"instances/{instance}"
    for command in (
        f"probe kprobe_events vmdebug_{mark}/p0_{mark} p",
        f"write {directory}/trace_clock mono",
        f"write {directory}/buffer_size_kb {500664 // 12 // 2}",
        f"write {directory}/options/overwrite 0",
        f"write {directory}/set_event_notrace_pid 101 44",
        f"write {directory}/events/vmdebug_{mark}/p0_{mark}/enable 1",
        f"go D {instance}",
        f"write {directory}/tracing_on 1",
    ):
        assert command in guest.commands
    with pytest.raises(StateError, match="the trace is not running"):
        made.take()


def test_the_kernel_counts_where_only_counts_are_wanted() -> None:
    guest = Guest()
    made = collector(guest)
    made.start(Wanted((Probe("vfs_read"),), count_only=True, count=2))
    batch = made.take()
    assert (batch.counts, batch.full, batch.hits) == ((2,), True, ())
    made.stop()
    assert not [each for each in guest.commands if each.startswith("go ") or "tracing_on 1" in each]


def test_hits_that_were_dropped_are_told() -> None:
    guest = Guest({"stats": STATS.replace("dropped events: 0", "dropped events: 5")})
    made = collector(guest)
    made.start(WANTED)
    (dropped,) = [each for each in made.stop().notes if "dropped" in each]
    assert dropped == (
        "10 hits were dropped: they came faster than vmdebug could read them; the guest's kernel cannot be"
        " made to wait"
    )


SWITCH = """name: sched_switch
ID: 314
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:0;
\tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;
\tfield:long prev_state;\toffset:32;\tsize:8;\tsigned:1;
\tfield:pid_t next_pid;\toffset:40;\tsize:4;\tsigned:1;
"""


def switched(pid: int, comm: bytes, to: int) -> bytes:
    return struct.pack("<HBBi16si4xqi4x", 314, 0, 0, pid, comm, pid, 1, to)


def test_switches_are_recorded_beside_the_hits_in_an_instance_of_their_own() -> None:
    seen = frame("S", page(2_000, (0, switched(7, b"cat", 0)), (500, switched(0, b"swapper/1", 7))), cpu=1)
    before = frame("S", page(10, (0, switched(1, b"init", 0))))
    full = STATS.replace("overrun: 0", "overrun: 2", 1)
    missing: dict[str, str | int] = {
        "read events/sched/sched_waking": errno.ENOENT,
        "read events/sched/sched_switch": SWITCH,
    }
    guest = Guest({**missing, "stats": full}, pages=before + seen)
    made = collector(guest)
    made.start(Wanted((Probe("vfs_read", ("count", "text")),), sched=True))
    batch = made.stop()
    assert batch.activity == (
        Activity(
            "sched_switch", 1e-6, 1, 7, {"prev_comm": "cat", "prev_pid": 7, "prev_state": 1, "next_pid": 0}
        ),
        Activity(
            "sched_switch",
            1.5e-6,
            1,
            0,
            {"prev_comm": "swapper/1", "prev_pid": 0, "prev_state": 1, "next_pid": 7},
        ),
    )
    assert "4 switches of tasks or interrupts were dropped: they came too fast" in batch.notes
    (own,) = [each.split()[1] for each in guest.commands if each.endswith("-activity") and "instance" in each]
    for command in (
        f"write instances/{own}/buffer_size_kb {500664 // 12 // 4}",
        f"write instances/{own}/events/sched/sched_switch/enable 1",
        f"go S {own}",
        f"write instances/{own}/tracing_on 1",
        f"write instances/{own}/tracing_on 0",
    ):
        assert command in guest.commands
    assert not [each for each in guest.commands if "sched_waking/enable" in each or "irq" in each]


def test_a_kernel_without_those_tracepoints_says_so() -> None:
    guest = Guest(dict.fromkeys(("read events/irq/", "read events/irq_vectors/"), errno.ENOENT))
    with pytest.raises(
        StateError, match="the kernel of vm has none of the tracepoints irq:irq_handler_entry"
    ):
        collector(guest).start(Wanted((Probe("vfs_read"),), irqs=True))
    assert guest.over.wait(5)


README = "\t    Format: f[:[<group>/][<event>]] <func-name>[%return] [<args>]\n"
ENTRY = Event(
    probe=0, name="p0", address=0x1000, fields=PLAIN.fields, arguments=PLAIN.arguments,
    definition="p:{name} 0x1000 a0=%dx:u64", fprobe="f:{name} vfs_read a0=$arg3:u64",
)  # fmt: skip


def defined(answers: dict[str, str | int]) -> list[str]:
    """Return how the event of a trace is defined, as what, and what is enabled or removed."""
    guest = Guest(answers)
    made = collector(guest, ENTRY)
    made.start(WANTED)
    made.stop()
    mark = next(each for each in guest.commands if each.startswith("instance ")).split("-")[1]
    wanted = [each for each in guest.commands if "vmdebug_" in each and "format" not in each]
    return [each.replace(mark, "MARK") for each in wanted]


def test_fprobes_are_used_where_the_kernel_has_them_and_knows_the_function() -> None:
    fast = "probe dynamic_events vmdebug_MARK/p0_MARK f:vmdebug_MARK/p0_MARK vfs_read a0=$arg3:u64"
    slow = "probe kprobe_events vmdebug_MARK/p0_MARK p:vmdebug_MARK/p0_MARK 0x1000 a0=%dx:u64"
    enable = "write instances/vmdebug-MARK/events/vmdebug_MARK/p0_MARK/enable 1"
    assert defined({}) == [slow, enable]
    assert defined({"read README": README}) == [fast, enable, enable]
    assert defined({"read README": README, "probe dynamic_events": errno.EINVAL}) == [fast, slow, enable]


def test_a_function_that_ftrace_does_not_know_gets_a_kprobe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(guest: Guest, command: str) -> None:
        refused = command.endswith("/enable 1") and "p0_" in command and not asked
        asked.extend([command] if refused else [])
        real(guest, "refuse" if refused else command)

    real = Guest._answer
    monkeypatch.setattr(Guest, "_answer", answer)
    found = defined({"read README": README, "refuse": errno.EINVAL})
    removed = "write dynamic_events -:vmdebug_MARK/p0_MARK"
    assert [each.split()[:2] for each in found] == [
        ["probe", "dynamic_events"], removed.split()[:2], ["probe", "kprobe_events"],
        ["write", "instances/vmdebug-MARK/events/vmdebug_MARK/p0_MARK/enable"],
    ]  # fmt: skip
    assert found[1] == removed


@pytest.mark.parametrize(
    ("answers", "why", "hint"),
    [
        ({"probe": errno.ENOENT}, "the kernel of vm has no CONFIG_KPROBE_EVENTS", "the fragment `trace`"),
        ({"probe": errno.EINVAL}, "refuses a kprobe in vfs_read: Invalid argument", "plugin or GDB"),
        (
            {"probe": errno.EINVAL, "debug kprobes": "0x0ff0-0x1010\tnotify_die\n"},
            "does not allow kprobes in vfs_read",
            "plugin or GDB",
        ),
    ],
)
def test_a_kernel_that_cannot_says_why(answers: dict[str, str | int], why: str, hint: str) -> None:
    guest = Guest(answers)
    place = Event(probe=0, name="p0", address=0x1000, definition="p:{name} 0x1000")
    with pytest.raises(StateError) as raised:
        collector(guest, place).start(WANTED)
    assert why in raised.value.message
    assert hint in (raised.value.hint or "")
    assert guest.over.wait(5)


def test_tracepoints_that_do_not_exist_and_conditions_that_are_none() -> None:
    point = events.tracepoint(0, "sched:x", "a0 == 1")
    guest = Guest({"read events/sched/x/format": errno.ENOENT})
    with pytest.raises(UsageError, match="no tracepoint sched:x"):
        collector(guest, point).start(Wanted((Probe("sched:x"),)))
    guest = Guest({"read events/sched/x/format": FORMAT, "filter": errno.EINVAL})
    wanted = Wanted((Probe("sched:x", ("a0",)),), when="a0 == 1")

    with pytest.raises(UsageError, match="refuses the condition a0 == 1"):
        collector(guest, point).start(wanted)


def test_a_guest_that_stops_or_dies_ends_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "ABANDON_SECONDS", 1.0)
    guest = Guest()
    made = collector(guest)
    made.start(WANTED)
    guest.running = False
    assert made.take().ended == "the guest is stopped"
    assert any("it removes its events once it runs" in note for note in made.stop().notes)
    guest = Guest()
    made = collector(guest)
    made.start(WANTED)
    guest.died = GuestDiedError("it panicked")
    guest.over.set()
    deadline = Deadline.after(5)
    while made.take().ended != "the guest is gone":
        assert not deadline.passed
    assert made.stop().ended == "the guest is gone"


def test_answers_are_those_of_their_commands_and_pages_wait_for_their_time() -> None:
    guest = Guest({"read b": errno.EBUSY})
    reader = Reader(guest.begin)
    deadline = Deadline.after(5)
    assert reader.greet(deadline) == (101, 44)
    found = reader.answers("tasks", "read b", "drain", deadline=deadline)
    assert found[0] == b"7 cat\n"
    assert isinstance(found[1], CommandError)
    assert (found[1].number, found[1].detail) == (errno.EBUSY, "the log")
    with pytest.raises(CommandError, match="refused `read b`"):
        reader.ask("read b", deadline=deadline)
    piece = frame("D", b"page", cpu=3)
    for byte in piece:
        reader._feed(bytes([byte]))
    assert reader.take().pages == []
    reader._feed(frame("N", b"name") + frame("T", struct.pack("<Q", 9)) + frame("D", b"late"))
    received = reader.take()
    assert (received.pages, received.names, received.complete) == ([(3, b"page")], [(0, b"name")], 9)
    assert reader.take(last=True).pages == [(0, b"late")]
    reader.finish()
    with pytest.raises(VmError, match="has ended before its answer"):
        reader.ask("tasks", deadline=deadline)


def test_a_call_without_its_format_is_an_error() -> None:
    guest = Guest()
    with pytest.raises(VmError, match="unknown form"):
        collector(guest, Event(probe=0, name="q0", definition="p", fields=CALL.fields)).start(WANTED)
