"""Traces by the guest's own kernel: kprobe events and tracepoints."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2

from tests.fixtures.accel import SECONDS
from vmdebug import process, vm
from vmdebug.errors import UsageError
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Probe

NAME = "(char *)file->f_path.dentry->d_name.name"
READ = (
    "count",
    "*pos",
    NAME,
    "file->f_flags",
    "file->f_flags & 0x8000 ? count + 1 : -1",
    "file->f_inode->i_sb->s_id",
    "file->f_inode->i_mode == 0100755 && count < 2",
    "$cpu",
    "$comm",
    "$task->pid == 0",
)
OPEN = ("dfd", "filename", "how->flags", "how->mode", "(short)dfd")
READS = 20
LEFT = "cat kprobe_events; ls instances; ls /run/.vmdebug-trace* /tmp/.vmdebug-trace* 2>/dev/null; true"
"""Prints what a trace has left in the guest: nothing."""


@pytest.fixture
def guest(builtin: LaunchSpec) -> Iterator[DebugSession]:
    """A session on the builtin guest, at its shell, with four CPUs and without the plugin."""
    spec = msgspec.structs.replace(builtin, trace_ready="no", cpus=4)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as made:
        made.exec("mount -t tracefs tracefs /sys/kernel/tracing; true", timeout=SECONDS)
        yield made


def left(made: DebugSession) -> str:
    return made.exec(f"cd /sys/kernel/tracing; {LEFT}", timeout=SECONDS).stdout


def await_removed(made: DebugSession) -> None:
    line = f'cd /sys/kernel/tracing; until [ -z "$({LEFT})" ]; do sleep 0.1; done'
    assert made.exec(line, timeout=SECONDS).status == 0


def facts(hits: list[Hit]) -> list[tuple[object, ...]]:
    """Return what every collector must see alike."""
    return [(hit.symbol, hit.args, hit.ret, hit.task.comm if hit.task else "") for hit in hits]


def test_hits_are_the_same_as_those_of_gdb(guest: DebugSession) -> None:
    probes = [Probe("vfs_read", READ), Probe("do_sys_openat2", OPEN)]
    line = f"cat /proc/version /missing; dd if=/bin/busybox of=/dev/null bs=1 count={READS}"
    words = ["taskset", "1", "sh", "-c", line]
    found = {}
    for by in ("guest", "gdb"):
        args = {"when": '$comm == "dd" || $comm == "cat"', "ret": True, "backtrace": True}
        with guest.trace(probes, by=by, **args) as hits:  # type: ignore[arg-type]
            guest.exec(words, timeout=SECONDS)
        assert hits.notes == ()
        found[by] = list(hits)
    guest.gdb.cont(wait=False)
    ours, theirs = facts(found["guest"]), facts(found["gdb"])
    assert sorted(map(repr, ours)) == sorted(map(repr, theirs))
    assert sum(hit.args.get(NAME) == "busybox" for hit in found["guest"]) == READS
    assert {"/missing", "/proc/version"} <= {hit.args.get("filename") for hit in found["guest"]}
    (missing,) = [hit for hit in found["guest"] if hit.args.get("filename") == "/missing"]
    assert missing.ret == -2
    functions = [call.function for call in missing.backtrace]
    assert functions[0] == "do_sys_openat2"
    assert "do_syscall_64" in functions
    assert missing.backtrace[0].file.endswith("fs/open.c")
    times = [hit.time for hit in found["guest"]]
    assert times == sorted(times)
    assert left(guest) == ""


def test_counts_and_returns_of_four_cpus_are_exact(guest: DebugSession) -> None:
    calls, line = (
        4 * 2500,
        "for cpu in 1 2 4 8; do taskset $cpu dd if=/dev/zero of=/dev/null bs=3 count=2500 & done; wait",
    )
    with guest.trace("vfs_write", args=["count"], when="count == 3", ret=True, by="guest") as hits:
        guest.exec(line, timeout=SECONDS)
    assert hits.notes == ()
    assert [(hit.args["count"], hit.ret) for hit in hits] == [(3, 3)] * calls
    assert {hit.cpu for hit in hits} == {0, 1, 2, 3}
    assert {hit.task.comm for hit in hits if hit.task} == {"dd"}
    with guest.trace("write_null", count_only=True, by="guest") as hits:
        guest.exec(line, timeout=SECONDS)
    assert hits.counts == {"write_null": calls}
    with guest.trace("vfs_write", when="count == 3", count_only=True, count=calls, by="guest") as hits:
        guest.exec(line, timeout=SECONDS)
        assert hits.take() == []
    assert hits.counts == {"vfs_write": calls}
    assert hits.full


def test_tracepoints(guest: DebugSession) -> None:
    probes = [Probe("sched:sched_switch", ("next_comm", "next_pid")), Probe("vfs_read", ("count",))]
    with guest.trace(probes) as hits:
        assert (hits.collector, hits.reason) == (
            "the guest's kernel",
            'the VM was started with trace_ready="no"',
        )
        guest.exec("dd if=/dev/zero of=/dev/null bs=1 count=3", timeout=SECONDS)
    (reader,) = {hit.task for hit in hits if hit.symbol == "vfs_read" and hit.args["count"] == 1}
    assert reader is not None
    assert reader.pid in [hit.args["next_pid"] for hit in hits if hit.symbol == "sched:sched_switch"]
    switched = [hit for hit in hits if hit.symbol == "sched:sched_switch" and hit.args["next_pid"] == 0]
    assert {hit.args["next_comm"] for hit in switched} == {f"swapper/{hit.cpu}" for hit in switched}
    with guest.trace([Probe("sched:sched_switch")], when='next_comm == "sleep"', count_only=True) as hits:
        guest.exec("sleep 0.1", timeout=SECONDS)
    assert hits.counts["sched:sched_switch"] >= 1
    for probe, why in (
        (Probe("sched:nothing"), "no tracepoint sched:nothing"),
        (Probe("sched:sched_switch", ("nothing",)), "no field nothing"),
    ):
        with pytest.raises(UsageError, match=why), guest.trace([probe]):
            pass
    with pytest.raises(NotCompiledError, match="no kprobes in notify_die"):
        guest.trace("notify_die", by="guest")
    assert left(guest) == ""


def test_switches_and_interrupts_beside_the_hits(guest: DebugSession, tmp_path: Path) -> None:
    with guest.trace("vfs_read", args=["count"], when="count == 1", ret=True, sched=True, irqs=True) as hits:
        assert hits.collector == "the guest's kernel"
        guest.exec("taskset 4 dd if=/dev/zero of=/dev/null bs=1 count=2000; sleep 0.2", timeout=SECONDS)
    assert hits.notes == ()
    (reader,) = {hit.task for hit in hits}
    assert reader is not None
    done = hits.activity
    assert [each.time for each in done] == sorted(each.time for each in done)
    switches = [each for each in done if each.event == "sched_switch"]
    # An idle CPU may run all of dd without another switch to it, after that of taskset.
    assert [each.cpu for each in switches if each.fields["next_pid"] == reader.pid][-1] == 2
    for cpu in range(4):  # each switch begins with the task that the last one ended with
        own = [each.fields for each in switches if each.cpu == cpu]
        assert [each["next_pid"] for each in own[:-1]] == [each["prev_pid"] for each in own[1:]]
    assert any(each.fields["comm"] == "sleep" for each in done if each.event == "sched_waking")
    assert any(
        str(each.fields["name"]).startswith("virtio") for each in done if each.event == "irq_handler_entry"
    )
    for kind in ("irq_handler", "softirq", "local_timer"):
        entries, exits = ([e.cpu for e in done if e.event == f"{kind}_{end}"] for end in ("entry", "exit"))
        assert len(entries) > 10
        for cpu in range(4):  # the trace may begin and end inside of one
            assert abs(entries.count(cpu) - exits.count(cpu)) <= 1
    assert left(guest) == ""

    output = tmp_path / "out.pftrace"
    argv = [
        sys.executable,
        "-m",
        "vmdebug.cli",
        "trace",
        guest.name,
        "--sched",
        "--irqs",
        "--format",
        "perfetto",
    ]
    with output.open("wb") as stream, process.start([*argv, "--timeout", "1"], stdout=stream) as child:
        assert child.wait(SECONDS) == 0
    written = perfetto_trace_pb2.Trace.FromString(output.read_bytes())
    bundles = [each.ftrace_events for each in written.packet if each.HasField("ftrace_events")]
    cpus = {each.cpu for each in bundles}  # one that idles all the time has no event
    assert len(cpus) > 1
    assert cpus <= {0, 1, 2, 3}
    assert any(event.HasField("sched_switch") for bundle in bundles for event in bundle.event)
    with pytest.raises(UsageError, match="GDB cannot collect interrupts"):
        guest.gdb.trace("vfs_read", irqs=True)
    guest.gdb.cont(wait=False)


def test_a_killed_vmdebug_leaves_nothing_in_the_guest(guest: DebugSession) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "trace", "vfs_read:count", "--ret", "--by", "guest"]
    with process.start(argv, stderr=process.PIPE) as child:
        assert child.stderr is not None
        lines = iter(child.stderr.readline, b"")
        assert any(b"tracing; Ctrl-C ends it" in line for line in lines)
        made = guest.exec("cat /sys/kernel/tracing/kprobe_events", timeout=SECONDS).stdout
        assert made.count("vmdebug_") == 2
        os.kill(child.pid, signal.SIGKILL)
    await_removed(guest)


def test_a_guest_that_stops_or_panics_ends_the_trace(guest: DebugSession) -> None:
    with guest.trace("vfs_read", by="guest") as hits:
        guest.exec("dd if=/dev/zero of=/dev/null count=1", timeout=SECONDS)
        assert next(hits.stream(timeout=SECONDS), None) is not None
        guest.vm.pause()
        hits.take()
        assert hits.ended == "the guest is stopped"
    assert any("the guest is stopped" in note for note in hits.notes)
    guest.vm.resume()
    await_removed(guest)
    with guest.trace("vfs_read", by="guest") as hits:
        guest.exec("dd if=/dev/zero of=/dev/null count=1", timeout=SECONDS)
        assert next(hits.stream(timeout=SECONDS), None) is not None
        guest.exec("echo c >/proc/sysrq-trigger", timeout=SECONDS, wait=False)
        assert all(hit.symbol == "vfs_read" for hit in hits.stream(timeout=SECONDS))
        assert hits.ended


def test_a_stopped_guest_is_traced_by_gdb(builtin: LaunchSpec) -> None:
    spec = msgspec.structs.replace(builtin, trace_ready="no", halt=True)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as made:
        hits = made.trace("start_kernel")
        assert hits.collector == "GDB"
        assert "the guest's kernel collects only while it runs" in hits.reason
