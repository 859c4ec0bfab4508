"""Traces: GDB's collector with recorded batches, the syntax of probes, and another collector."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from vmdebug.debugger.breakpoint_table import BreakpointTable
from vmdebug.debugger.collector import GdbCollector, decode
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Stop, Thread, frame
from vmdebug.errors import GdbError, UsageError
from vmdebug.trace import probe
from vmdebug.trace.collector import Batch, Feature
from vmdebug.trace.hit import Call, Hit, Task
from vmdebug.trace.probe import Probe, Wanted
from vmdebug.trace.trace import Trace

READ = Probe("vfs_read", ("count", "file->f_flags"))
NOTED = [0, 0.25, 1.5, 1, [45, "dd"], [1, None], [["vfs_read", 4096, "/src/read_write.c", 454]], -11, 0.002]
HIT = Hit(
    symbol="vfs_read",
    args={"count": 1, "file->f_flags": None},
    time=0.25,
    guest_time=1.5,
    cpu=1,
    task=Task(45, "dd"),
    backtrace=(Call("vfs_read", 4096, "/src/read_write.c", 454),),
    ret=-11,
    duration=0.002,
)


def packed(what: Any) -> str:
    return base64.b64encode(json.dumps(what).encode()).decode()


def batch(*noted: Any, full: bool = False) -> dict[str, str]:
    return {"full": str(int(full)), "hits": packed(noted)}


BEGUN = {"trace": "3", "numbers": "-7,-8", "started": "12.5", "notes": packed(["that is all"])}


SECONDS = 20.0


class Runner:
    """A guest that records when it runs and stops."""

    def __init__(self, state: State, *answers: Mapping[str, Any]) -> None:
        self.state = state
        self.did: list[str] = []
        self._answers = list(answers)

    @contextlib.contextmanager
    def held(self, *, timeout: float) -> Iterator[None]:
        assert timeout == SECONDS
        self.did.append("hold")
        yield
        self.did.append("let go")

    def resume(self) -> None:
        self.did.append("resume")
        self.state = State.RUNNING

    def interrupt(self, *, timeout: float) -> Stop:
        assert timeout == SECONDS
        self.did.append("interrupt")
        self.state = State.STOPPED
        return Stop("signal-received", Thread(1), frame({}, Thread(1)))

    def ask(self, command: str, timeout: float) -> Mapping[str, Any]:
        assert 0 < timeout <= SECONDS
        self.did.append(command if "start" not in command else "start")
        return self._answers.pop(0)

    def trace(self, table: BreakpointTable) -> Trace:
        return Trace(GdbCollector(self, self.ask, table, SECONDS), Wanted((READ,)))


def test_a_batch_as_hits() -> None:
    bare = [0, 1, None, 0, None, [2, "x"], [], None]
    assert decode(packed([NOTED, bare]), [READ]) == (
        HIT,
        Hit("vfs_read", {"count": 2, "file->f_flags": "x"}, 1.0, None, 0, None),
    )


def test_a_stopped_guest_runs_inside_the_block_only() -> None:
    runner = Runner(State.STOPPED, BEGUN, batch(NOTED), batch(NOTED, full=True))
    table = BreakpointTable()
    with runner.trace(table) as hits:
        assert hits.take() == [HIT]
        assert not hits.full
        assert sorted(each.number for each in table.all()) == [-8, -7]
        assert hits.notes == ("that is all",)
    assert runner.did == [
        "hold", "start", "let go", "resume",
        "-vmd-trace-take 3 0",
        "interrupt", "hold", "-vmd-trace-end 3 1", "let go",
    ]  # fmt: skip
    assert list(hits) == [HIT, HIT]
    assert hits.full
    assert not table


def test_a_running_guest_runs_on() -> None:
    runner = Runner(State.RUNNING, BEGUN, batch())
    with runner.trace(BreakpointTable()) as hits:
        pass
    assert len(hits) == 0
    assert runner.did == ["hold", "start", "let go", "hold", "-vmd-trace-end 3 0", "let go"]


def test_hits_are_asked_for_again_while_gdb_is_busy_with_more() -> None:
    class Busy(Runner):
        refusals = 2

        def ask(self, command: str, timeout: float) -> Mapping[str, Any]:
            if "take" in command and self.refusals:
                self.refusals -= 1
                raise GdbError("Cannot execute this command while the target is running.")
            return super().ask(command, timeout)

    runner = Busy(State.RUNNING, BEGUN, batch(NOTED), batch())
    with runner.trace(BreakpointTable()) as hits:
        assert hits.take() == [HIT]
    assert runner.did[3:] == ["-vmd-trace-take 3 0", "hold", "-vmd-trace-end 3 1", "let go"]


def test_a_guest_that_died_leaves_what_it_gave() -> None:
    runner = Runner(State.RUNNING, BEGUN, batch(NOTED))
    with runner.trace(BreakpointTable()) as hits:
        runner.state = State.GONE
    assert hits[:] == [HIT]
    assert runner.did[-1] == "-vmd-trace-end 3 0"


def test_a_guest_that_cannot_be_resumed_keeps_no_breakpoints() -> None:
    class Stuck(Runner):
        def resume(self) -> None:
            raise GdbError("it does not run")

    runner = Stuck(State.STOPPED, BEGUN, batch())
    table = BreakpointTable()
    with pytest.raises(GdbError, match="does not run"), runner.trace(table):
        pass
    assert runner.did[-2:] == ["-vmd-trace-end 3 0", "let go"]
    assert not table


@pytest.mark.parametrize(
    ("word", "where", "args"),
    [
        ("vfs_read", "vfs_read", ()),
        ("vfs_read:count,file->f_flags", "vfs_read", ("count", "file->f_flags")),
        ("f:max(a,b),c[1,2]", "f", ("max(a,b)", "c[1,2]")),
        ("fs/read_write.c:454", "fs/read_write.c:454", ()),
        ("fs/read_write.c:454:count, pos", "fs/read_write.c:454", ("count", "pos")),
    ],
)
def test_words(word: str, where: str, args: tuple[str, ...]) -> None:
    assert probe.parse([word]) == (Probe(where, args),)


def test_a_word_without_a_place() -> None:
    with pytest.raises(UsageError, match="names no place"):
        probe.parse([":count"])


class Counter:
    """A collector without a debugger, with made-up hits."""

    name = "the counter"

    def __init__(self, *batches: Batch, cannot: Mapping[Feature, str] | None = None) -> None:
        self.cannot: Mapping[Feature, str] = cannot or {}
        self.started: list[Wanted] = []
        self.stopped = 0
        self._batches = list(batches)

    def start(self, wanted: Wanted) -> Batch:
        self.started.append(wanted)
        return Batch(notes=("cpu is that of the timer",))

    def take(self) -> Batch:
        return self._batches.pop(0)

    def stop(self) -> Batch:
        self.stopped += 1
        return Batch(hits=(HIT,), full=True, ended="the guest is off")


def test_a_trace_takes_any_collector() -> None:
    counter = Counter(Batch(hits=(HIT, HIT)), Batch(ended="the guest is off"))
    with Trace(counter, Wanted((READ,), count=3)) as hits:
        assert hits.notes == ("cpu is that of the timer",)
        assert hits.take() == [HIT, HIT]
        assert (hits.full, hits.ended) == (False, "")
        assert hits.take() == []
        assert hits.ended == "the guest is off"
    assert counter.started == [Wanted((READ,), count=3)]
    assert counter.stopped == 1
    assert hits.full
    assert list(hits) == [HIT] * 3


@pytest.mark.parametrize(
    ("feature", "wanted"),
    [
        ("args", Wanted((READ,))),
        ("when", Wanted((Probe("vfs_read"),), when="count > 1")),
        ("count", Wanted((Probe("vfs_read"),), count=1)),
        ("backtrace", Wanted((Probe("vfs_read"),), backtrace=True)),
        ("ret", Wanted((Probe("vfs_read"),), ret=True)),
    ],
)
def test_what_a_collector_cannot_is_refused_with_its_reason(feature: Feature, wanted: Wanted) -> None:
    counter = Counter(cannot={feature: "it reads no registers"})
    with pytest.raises(UsageError, match=r"the counter cannot collect .*: it reads no registers") as raised:
        Trace(counter, wanted)
    assert raised.value.hint == f"trace without {feature}"
    assert counter.started == []
    Trace(counter, Wanted((Probe("vfs_read"),)))


def test_a_collector_that_refuses_to_start_is_not_stopped() -> None:
    class Refusing(Counter):
        def start(self, wanted: Wanted) -> Batch:
            raise GdbError("no such place")

    counter = Refusing()
    with pytest.raises(GdbError, match="no such place"), Trace(counter, Wanted((READ,))):
        pass
    assert counter.stopped == 0


def test_a_trace_of_no_place() -> None:
    with pytest.raises(UsageError, match="at least one place"):
        probe.wanted([])


@pytest.mark.parametrize(
    ("where", "args", "says", "hint"),
    [
        (
            {"vfs_read": ["count"]},
            (),
            "is neither a place nor a list of probes",
            'gdb.trace("vfs_read", args=',
        ),
        (["vfs_read"], (), "is neither a place nor a list of probes", "gdb.trace([Probe("),
        (
            "vfs_read:count,*pos",
            (),
            "is the command line's form",
            'gdb.trace("vfs_read", args=["count", "*pos"])',
        ),
        ("vfs_read", "count", "args='count' is not a list of expressions", 'args=["count"]'),
        ([READ], ["count"], "args= goes with one place", "gdb.trace([Probe("),
    ],
)
def test_a_wrong_form_is_an_error_that_shows_the_right_one(
    where: Any, args: Any, says: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as raised:
        probe.wanted(where, args=args)
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    "where", ["open.c:1308", "fs/open.c:1308", "*vfs_read+4", "Class::method", "*a ? b : c"]
)
def test_places_with_a_colon_or_a_star_are_places(where: str) -> None:
    assert probe.wanted(where).probes == (Probe(where),)
