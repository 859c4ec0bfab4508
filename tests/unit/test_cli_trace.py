"""`trace`: its arguments and its output."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Self

import pytest

from tests.unit import cli_doubles
from vmdebug import cli
from vmdebug.cli import trace as verb
from vmdebug.collecting import Choice
from vmdebug.trace.activity import Activity
from vmdebug.trace.collector import Batch, Feature
from vmdebug.trace.hit import Call, Hit, Task
from vmdebug.trace.probe import Probe, Wanted

READ = Hit("vfs_read", {"count": 1, "file": 0xFFFF888000000000}, 0.25, 1.5, 1, Task(45, "dd"), ret=-11)
NAMED = Hit("open", {"name": "/x", "gone": None}, 1.0, None, 0, None, (Call("open", 16, "/s/o.c", 7),))


class MadeUp:
    """A collector without GDB, which returns its hits one after another."""

    name = "a made-up collector"
    cannot: Mapping[Feature, str] = {}

    def __init__(self, hits: Sequence[Hit]) -> None:
        self.wanted = Wanted(())
        self.interrupted = False
        self.activity: list[Activity] = []
        self.ended = ""
        self._hits = list(hits)

    def start(self, wanted: Wanted) -> Batch:
        self.wanted = wanted
        return Batch(notes=("no return value",))

    def take(self) -> Batch:
        if self.interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            return Batch(notes=("no return value",))
        return self._batch(self._hits[:1])

    def stop(self) -> Batch:
        return self._batch(list(self._hits))

    def _batch(self, hits: list[Hit]) -> Batch:
        del self._hits[: len(hits)]
        if self.wanted.count_only:
            return Batch(counts=(7, 0), ended="the guest is off")
        notes = ("no return value",)
        done, self.activity = tuple(self.activity), []
        return Batch(hits=tuple(hits), full=not self._hits, ended=self.ended, notes=notes, activity=done)


class Session:
    """A session whose hits do not come from GDB."""

    notes = ("symbols of another build",)

    def __init__(self, made_up: MadeUp) -> None:
        self.vm = cli_doubles.machine("vm")
        self.made_up = made_up
        self.closed = False
        self.forced = False
        self.by = ""

    def collector(self, wanted: Wanted, by: str) -> Choice:
        self.by = by
        return Choice(self.made_up, "it makes hits up" if by == "auto" else "", wanted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    made = Session(MadeUp([READ, NAMED]))
    monkeypatch.setattr(verb, "FETCH_SECONDS", 0)
    monkeypatch.setattr("vmdebug.vm.names", lambda: ["vm"])

    def attach(name: str | None, *, force: bool) -> Session:
        assert name in (None, "vm")
        made.forced = force
        return made

    monkeypatch.setattr("vmdebug.session.attach", attach)
    return made


def test_text(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "vm", "vfs_read:count,file", "open"]) == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["0.250000", "cpu1", "dd:45", "vfs_read", "count=1", "file=0xffff888000000000", "=", "-11"],
        ["1.000000", "cpu0", "?", "open", 'name="/x"', "gone=?"],
        ["#0", "open", "at", "/s/o.c:7"],
    ]
    said = ["symbols of another build", "no return value", "2 hits"]
    chosen = ["reading the kernel's symbols", "a made-up collector collects: it makes hits up"]
    assert err.splitlines() == [*chosen, "tracing; Ctrl-C ends it", *said]
    assert session.made_up.wanted == Wanted((Probe("vfs_read", ("count", "file")), Probe("open")))
    assert session.closed


def test_json_is_an_object_a_line(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trace", "open", "--json", "--when", "x > 1", "--count", "9", "--backtrace", "--ret"]
    assert cli.status_of(words) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["task"], first["args"]["count"], first["ret"]) == ({"pid": 45, "comm": "dd"}, 1, -11)
    assert second["backtrace"] == [{"function": "open", "pc": 16, "file": "/s/o.c", "line": 7}]
    assert session.made_up.wanted == Wanted((Probe("open"),), "x > 1", 9, True, True)


def test_chrome_is_an_array_of_events(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "open", "--format", "chrome"]) == 0
    events = json.loads(capsys.readouterr().out)
    assert [event["ph"] for event in events] == ["M", "i", "M", "i", "M"]
    assert events[0]["args"] == {"name": "dd"}
    assert (events[1]["name"], events[1]["ts"], events[1]["tid"]) == ("vfs_read", 250000.0, 45)
    assert events[1]["args"]["ret"] == -11
    assert events[3]["args"]["backtrace"] == ["open"]


def test_going_on_with_symbols_of_another_build(session: Session) -> None:
    assert cli.status_of(["trace", "open"]) == 0
    assert not session.forced
    assert cli.status_of(["trace", "open", "--force"]) == 0
    assert session.forced


def test_ctrl_c_keeps_what_came(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.made_up.interrupted = True
    assert cli.status_of(["trace", "open"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert err.splitlines()[-1] == "2 hits"
    assert session.closed


def test_the_time_is_up(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "open", "--timeout", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_guest_that_stops_by_itself(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.made_up.ended = "the guest is gone"
    assert cli.status_of(["trace", "open"]) == 0
    assert "the guest is gone" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--format", "xml"], ["--json", "--format", "text"], [":count"]])
def test_words_that_cannot_be_right(
    session: Session, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.status_of(["trace", *words, "open"]) == 2
    assert "hint" in capsys.readouterr().err


def test_what_the_collector_cannot_collect(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.made_up.cannot = {"ret": "QEMU 7.2 reads no registers"}
    assert cli.status_of(["trace", "open", "--ret"]) == 2
    assert "a made-up collector cannot collect return values (ret) here: QEMU 7.2" in capsys.readouterr().err
    assert session.closed


def test_who_collects(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "open", "--by", "plugin", "--overflow", "drop"]) == 0
    assert session.by == "plugin"
    assert session.made_up.wanted.overflow == "drop"
    assert "collects" not in capsys.readouterr().err


def test_counts_only(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "open", "close", "--count-only"]) == 0
    out, err = capsys.readouterr()
    assert out == "           7  open\n           0  close\n"
    assert "0 hits" not in err
    assert cli.status_of(["trace", "open", "close", "--count-only", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"symbol": "open", "count": 7},
        {"symbol": "close", "count": 0},
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["open:fd", "--count-only"], "a trace that only counts (count_only) collects no expressions"),
        (["open", "--overflow", "explode"], "overflow='explode' is neither 'block' nor 'drop'"),
        (["open", "--by", "foo"], "there is no collector 'foo'"),
        (["open", "--max-depth", "2"], "--max-depth goes with --graph"),
        (["open", "--top", "3", "--format", "json"], "--graph, --histogram and --top have no --format json"),
        (["open", "--on-hit", "jump"], "--on-hit 'jump' is neither 'print' nor 'stop'"),
        (["open", "--on-hit", "stop", "--by", "plugin"], "--on-hit stop needs GDB"),
        (["open", "--on-hit", "stop", "--ret"], "--on-hit stop only prints the first hit"),
    ],
)
def test_options_that_exclude_each_other(
    session: Session, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert cli.status_of(["trace", *words]) == 2
    assert says in capsys.readouterr().err
    assert not session.by  # nothing was attached


def test_summaries_instead_of_hits(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "vfs_read", "open", "--histogram", "count", "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["vfs_read:", "count"], ["1", "1"], ["calls", "call"], ["1", "vfs_read"],
    ]  # fmt: skip
    assert "2 hits" in err
    assert session.made_up.wanted.probes == (Probe("vfs_read", ("count",)), Probe("open", ("count",)))
    assert not session.made_up.wanted.ret


@pytest.mark.parametrize("words", [["--graph"], ["--histogram", "$duration"], ["--duration-over", "0.5"]])
def test_times_of_calls_need_returns(session: Session, words: list[str]) -> None:
    assert cli.status_of(["trace", "vfs_read", *words]) == 0
    assert session.made_up.wanted.ret


def test_the_functions_that_are_called_are_traced_too(session: Session) -> None:
    assert cli.status_of(["trace", "vfs_read", "--graph", "--max-depth", "3"]) == 0
    assert session.made_up.wanted.callees == 2


def test_perfetto_is_binary(session: Session, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb  # noqa: PLC0415 - slow

    assert cli.status_of(["trace", "vfs_read", "--format", "perfetto"]) == 0
    trace = pb.Trace()
    trace.ParseFromString(capfdbinary.readouterr().out)
    assert "vfs_read" in {each.track_event.name for each in trace.packet}


def test_switches_need_no_symbol_and_are_among_the_packets(
    session: Session, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb  # noqa: PLC0415 - slow

    session.made_up.activity = [Activity("softirq_entry", 0.5, 1, 0, {"vec": 1})]
    assert cli.status_of(["trace", "vm", "--sched", "--irqs", "--format", "perfetto"]) == 0
    wanted = session.made_up.wanted
    assert (wanted.probes, wanted.sched, wanted.irqs) == ((), True, True)
    packets = pb.Trace.FromString(capfdbinary.readouterr().out).packet
    (bundle,) = (each.ftrace_events for each in packets if each.HasField("ftrace_events"))
    assert (bundle.cpu, bundle.event[0].softirq_entry.vec) == (1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trace"], "no SYMBOL is given"),
        (["trace", "vfs_read", "--sched"], "--sched and --irqs go with --format perfetto"),
        (["trace", "vfs_read", "--irqs", "--json"], "--sched and --irqs go with --format perfetto"),
        (["trace", "f", "--irqs", "--count-only", "--format", "perfetto"], "nothing beside the hits"),
    ],
)
def test_what_switches_do_not_go_with(
    words: list[str], message: str, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(words) == 2
    assert message in capsys.readouterr().err
