"""Histograms, tables and trees of hits, and Perfetto's format."""

from __future__ import annotations

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

from vmdebug.trace.activity import TRACEPOINTS, Activity
from vmdebug.trace.hit import Call, Hit, Task
from vmdebug.trace.perfetto import Perfetto
from vmdebug.trace.summary import DURATION, RET, Graph, Histogram, Top

DD, CAT = Task(45, "dd"), Task(46, "cat")


def call(symbol: str, at: float, took: float | None = None, *, task: Task = DD, count: int | str = 1) -> Hit:
    return Hit(symbol, {"count": count}, at, None, 0, task, ret=None if took is None else 7, duration=took)


def lines(of: Histogram | Top | Graph, *hits: Hit) -> list[str]:
    for hit in hits:
        of.add(hit)
    return list(of.lines())


def test_a_histogram_counts_powers_of_two() -> None:
    found = lines(Histogram("count"), *(call("f", 0, count=each) for each in (0, 1, 2, 3, 9, -1)))
    assert [line.partition("|")[0].split() for line in found] == [
        ["f:", "count"], ["-1", "1"], ["0", "1"], ["1", "1"], ["2", "…", "3", "2"], ["4", "…", "7", "0"],
        ["8", "…", "15", "1"],
    ]  # fmt: skip
    assert found[4].count("█") == 2 * found[3].count("█") == 40


def test_histograms_of_strings_return_values_and_times() -> None:
    found = lines(
        Histogram("count"), call("f", 0, count="b"), call("f", 0, count="a"), call("f", 0, count="b")
    )
    assert [line.split()[:2] for line in found[1:]] == [["'b'", "2"], ["'a'", "1"]]
    assert lines(Histogram(RET), call("f", 0, 1.0))[1].split()[:4] == ["4", "…", "7", "1"]
    assert lines(Histogram(DURATION), call("g", 0, 600e-9), call("g", 0))[:1] == ["g: $duration in ns"]


def test_the_most_frequent_calls() -> None:
    hits = [call("f", 0, 0.25), call("f", 1, 0.75), call("g", 2, 0.5, task=CAT)]
    assert [line.split() for line in lines(Top(1), *hits)] == [
        ["calls", "seconds", "mean", "call"],
        ["2", "1.000000", "500000.000", "us", "f", "by", "dd"],
    ]
    assert lines(Top(9), call("f", 0))[1].split() == ["1", "f", "by", "dd"]


def test_a_tree_of_calls_of_each_task() -> None:
    # As they come: when they return.
    hits = [
        call("inner", 1.0, 1e-6), call("other", 1.0, 5e-6, task=CAT), call("deep", 1.1, 1e-6),
        call("middle", 1.05, 0.5), call("outer", 0.9, 2.0), call("next", 3.0),
    ]  # fmt: skip
    found = [line.partition("|  ")[2] for line in lines(Graph(), *hits)]
    assert found[1:] == [
        "outer(count=1) {",
        "  inner(count=1); /* = 7 */",
        "  middle(count=1) {",
        "    deep(count=1); /* = 7 */",
        "  } /* = 7 */",
        "} /* = 7 */",
        "other(count=1); /* = 7 */",
        "next(count=1);",
    ]
    assert [line.partition("|  ")[2] for line in lines(Graph(1), *hits)][1] == "outer(count=1); /* = 7 */"
    rooted = [line.partition("|  ")[2] for line in lines(Graph(None, {"middle"}), *hits)]
    assert rooted[1:] == ["middle(count=1) {", "  deep(count=1); /* = 7 */", "} /* = 7 */"]
    assert "  0)  dd-45" in lines(Graph(), hits[0])[1]
    assert "1.000 us |" in lines(Graph(), hits[0])[1]


def test_perfetto_has_tasks_as_threads_calls_as_slices_and_numbers_as_counters() -> None:
    writer = Perfetto()
    hits = [
        Hit("f", {"count": 3, "name": "x", "p": 1 << 63}, 1.0, 0.5, 0, DD, (Call("f", 16),), 7, 0.25),
        Hit("g", {}, 1.5, None, 1, Task(0, "swapper/1")),
    ]
    trace = pb.Trace()
    trace.ParseFromString(b"".join(writer.packets(hit) for hit in hits))
    tracks = {
        each.track_descriptor.uuid: each.track_descriptor
        for each in trace.packet
        if each.HasField("track_descriptor")
    }
    events = [each for each in trace.packet if each.HasField("track_event")]
    kinds = pb.TrackEvent
    assert [(each.timestamp, each.track_event.type) for each in events] == [
        (1_000_000_000, kinds.TYPE_SLICE_BEGIN),
        (1_250_000_000, kinds.TYPE_SLICE_END),
        (1_000_000_000, kinds.TYPE_COUNTER),
        (1_500_000_000, kinds.TYPE_INSTANT),
    ]
    begin, _, counter, instant = (each.track_event for each in events)
    assert tracks[begin.track_uuid].thread.thread_name == "dd"
    assert tracks[counter.track_uuid].name == "f count"
    assert counter.double_counter_value == 3
    assert tracks[instant.track_uuid].name == "swapper/1"
    notes = {each.name: each for each in begin.debug_annotations}
    assert (notes["count"].int_value, notes["name"].string_value, notes["p"].pointer_value) == (
        3,
        "x",
        1 << 63,
    )
    assert (notes["returned"].int_value, notes["backtrace"].string_value) == (7, "f")


def test_perfetto_gets_switches_and_interrupts_as_events_of_ftrace() -> None:
    writer = Perfetto("6.1.0-test")
    switch: dict[str, int | str] = {
        "prev_comm": "dd",
        "prev_pid": 45,
        "prev_state": 1,
        "next_comm": "swapper/1",
        "next_pid": 0,
    }
    done = [
        Activity("sched_switch", 0.25, 1, 45, {**switch, "prev_prio": 120, "next_prio": 120}),
        Activity("irq_handler_entry", 0.5, 0, 7, {"irq": 4, "name": "ttyS0"}),
        Activity("irq_handler_exit", 0.75, 0, 7, {"irq": 4, "ret": 1}),
    ]
    data = writer.activity_packets(done) + writer.packets(call("f", 0.25, 0.5))
    packets = pb.Trace.FromString(data).packet
    assert [each.system_info.utsname.release for each in packets if each.HasField("system_info")] == [
        "6.1.0-test"
    ]
    of_one, of_zero = (each.ftrace_events for each in packets if each.HasField("ftrace_events"))
    (event,) = of_one.event
    assert (of_one.cpu, event.timestamp, event.pid) == (1, 250_000_000, 45)
    assert (event.sched_switch.prev_comm, event.sched_switch.next_comm) == ("dd", "swapper/1")
    assert (event.sched_switch.prev_pid, event.sched_switch.prev_state) == (45, 1)
    entry, end = of_zero.event
    assert (of_zero.cpu, entry.irq_handler_entry.name, entry.irq_handler_entry.irq) == (0, "ttyS0", 4)
    assert (end.timestamp, end.irq_handler_exit.ret) == (750_000_000, 1)
    # The hits of a task are on the thread of its switches.
    (thread,) = (each.track_descriptor.thread for each in packets if each.track_descriptor.HasField("thread"))
    assert thread.tid == event.pid
    assert sum(each.track_descriptor.HasField("process") for each in packets) == 1


def test_perfetto_knows_each_tracepoint_and_field() -> None:
    for group in TRACEPOINTS.values():
        for where, fields in group.items():
            event = where.partition(":")[2]
            known = pb.FtraceEvent.DESCRIPTOR.fields_by_name[event].message_type.fields_by_name
            assert set(fields) <= set(known)
            texts = {
                name: "x" if name in ("name", "comm") or name.endswith("_comm") else 1 for name in fields
            }
            data = Perfetto().activity_packets([Activity(event, 0, 0, 1, texts)])
            (found,) = pb.Trace.FromString(data).packet[1].ftrace_events.event
            assert found.WhichOneof("event") == event
