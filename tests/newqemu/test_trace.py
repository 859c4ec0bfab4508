"""Traces by the plugin in a QEMU whose plugins read registers: the same hits as GDB's, and none lost."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import process, vm
from vmdebug.cli import status_of
from vmdebug.debugger.runstate import State
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.hit import Hit
from vmdebug.trace.plugin import link
from vmdebug.trace.probe import Probe

NAME = "(char *)file->f_path.dentry->d_name.name"
READ = f'count == 7 && $_streq({NAME}, "zero")'


def dd(session: DebugSession, count: int, size: int = 7) -> None:
    line = f"dd if=/dev/zero of=/dev/null bs={size} count={count}"
    session.exec(line, timeout=SECONDS, check=True)


def comparable(hit: Hit) -> object:
    return (hit.symbol, hit.args, hit.cpu, hit.task and hit.task.comm, hit.ret)


@pytest.mark.parametrize(
    ("probe", "when", "line"),
    [
        (
            Probe(
                "vfs_read",
                (
                    "count", "*pos", NAME, "file->f_mode & 0x1f", "file->f_flags",
                    "file->f_path.dentry->d_iname",
                    "file->f_inode->i_ino", "file->f_op == 0", "-count", "(short)count << 3",
                    "file->f_inode->i_mode & 0170000", "file->f_path.dentry->d_parent->d_iname",
                ),
            ),
            READ,
            "dd if=/dev/zero of=/dev/null bs=7 count=1000",
        ),
        (
            Probe("do_sys_openat2", ("dfd", "filename", "how->flags", "how->mode")),
            '$_streq(filename, "/etc/passwd")',
            "for each in $(seq 50); do cat /etc/passwd >/dev/null; done",
        ),
        (
            Probe("kmem_cache_alloc", ("s->name", "s->object_size", "gfpflags")),
            '$_streq(s->name, "filp")',
            "cat /etc/passwd >/dev/null",
        ),
        (  # switches tasks
            Probe("schedule", ("$task->pid > 0", "$task->comm")),
            '$comm == "sleep"',
            "for each in 1 2 3 4 5; do sleep 0.01; done",
        ),
        (  # inlined into its callers
            Probe("vfs_fsync", ("datasync",)),
            '$comm == "dd"',
            "for each in 1 2 3 4 5; do dd if=/dev/zero of=/tmp/synced bs=1 count=1 conv=fsync; done",
        ),
    ],
)  # fmt: skip
def test_the_same_values_by_each_collector(session: DebugSession, probe: Probe, when: str, line: str) -> None:
    found = {}
    # The result of kmem_cache_alloc is an address, and an inlined function has none.
    ret = probe.where not in ("kmem_cache_alloc", "vfs_fsync", "schedule")
    for by in ("plugin", "guest", "gdb"):
        if by == "gdb":
            session.gdb.cont(wait=False)
        with session.trace([probe], when=when, ret=ret, by=by) as hits:
            session.exec(line, timeout=SECONDS, check=True)
        found[by] = [comparable(hit) for hit in hits if hit.task and not hit.task.comm.startswith("vmdebug")]
        if probe.where == "schedule":  # how often tasks are switched differs from run to run
            found[by] = [*{repr(each): each for each in found[by]}.values()] * 3
    assert len(found["plugin"]) >= 3
    assert found["plugin"] == found["gdb"]
    assert found["guest"] == found["gdb"]


def test_a_function_of_a_module(session: DebugSession) -> None:
    session.exec("modprobe brd", timeout=SECONDS, check=True)
    for by in ("plugin", "guest", "gdb"):
        if by == "gdb":
            session.gdb.cont(wait=False)
        with session.trace("brd_submit_bio", args=["bio->bi_iter.bi_sector"], backtrace=True, by=by) as hits:
            session.exec("dd if=/dev/ram0 of=/dev/null bs=4k count=16 iflag=direct", timeout=SECONDS)
        assert [hit.args["bio->bi_iter.bi_sector"] for hit in hits] == list(range(0, 128, 8))
        assert [call.function for call in hits[0].backtrace][:1] == ["brd_submit_bio"]
        assert "vfs_read" in [call.function for call in hits[0].backtrace]


def test_traces_one_after_the_other_while_programs_start(session: DebugSession) -> None:
    loop = "while :; do dd if=/dev/zero of=/dev/null bs=1 count=9 2>/dev/null; done"
    session.exec(f"({loop}) >/dev/null 2>&1 &", timeout=SECONDS)
    for _ in range(20):
        with session.trace("vfs_read", count=2, ret=True, backtrace=True) as hits:
            assert len(list(hits.stream(timeout=SECONDS))) == 2
    assert session.exec("echo lives", timeout=SECONDS).stdout == "lives\n"


def test_no_hit_is_lost_and_each_return_belongs_to_its_call(session: DebugSession) -> None:
    with session.trace("vfs_read", args=["count", "*pos"], when=READ, ret=True) as hits:
        assert hits.collector == "the plugin"
        dd(session, 20_000)
    assert all(0 < (hit.duration or 0) < 1 for hit in hits)
    assert len(hits) == 20_000
    assert {(hit.args["count"], hit.ret) for hit in hits} == {(7, 7)}
    assert {hit.task.comm for hit in hits if hit.task} == {"dd"}
    assert len({hit.task for hit in hits}) == 1
    times = [hit.time for hit in hits]
    assert times == sorted(times)
    guest_times = [hit.guest_time or 0 for hit in hits]
    assert guest_times == sorted(guest_times)
    assert guest_times[0] > 0
    assert hits.notes == ()


def test_a_million_returns_belong_to_their_calls(session: DebugSession) -> None:
    """Two tasks take turns, and dd counts its calls itself."""
    each = "dd if=/dev/zero of=/dev/null count=500000 bs"
    line = f"{each}=3 & {each}=5; wait"
    with session.trace("vfs_read", args=["count"], when="count == 3 || count == 5", ret=True) as hits:
        said = session.exec(line, timeout=SECONDS, check=True)
    found = Counter((hit.args["count"], hit.ret) for hit in hits)
    assert (said.stdout + said.stderr).count("500000+0 records in") == 2
    assert found == {(3, 3): 500_000, (5, 5): 500_000}
    assert hits.notes == ()


@pytest.mark.parametrize("where", ["vfs_read", "tick_sched_timer"])
def test_backtraces_are_those_of_gdb(session: DebugSession, where: str) -> None:
    found = {}
    for by in ("plugin", "gdb"):
        if by == "gdb":
            session.gdb.cont(wait=False)
        with session.trace(where, backtrace=True, by=by) as hits:
            # Of many ticks some interrupt the same instructions; GDB also shows frames of tail calls.
            dd(session, 200 if where == "vfs_read" else 300_000)
        found[by] = {
            hit.backtrace
            for hit in hits
            if hit.task and hit.task.comm in ("dd", "swapper/0") and hit.backtrace
        }
    assert found["plugin"] & found["gdb"]
    if where == "vfs_read":
        assert found["plugin"] == found["gdb"]
    else:
        assert any(
            "asm_sysvec_apic_timer_interrupt" in [call.function for call in each][:-1]
            for each in found["plugin"]
        )


def test_the_task_of_each_hit_is_the_one_that_runs(session: DebugSession) -> None:
    line = (
        "sh -c 'for i in 1 2 3 4 5 6 7 8; do (dd if=/dev/zero of=/dev/null bs=7 count=300 &) ; done'; sleep 1"
    )
    with session.trace("vfs_read", args=["$comm", "$task->pid"], when="count == 7") as hits:
        session.exec(line, timeout=SECONDS, check=True)
    assert len(hits) >= 2400
    assert len({hit.task for hit in hits}) >= 8
    assert all(hit.task and (hit.task.comm, hit.task.pid) == tuple(hit.args.values()) for hit in hits)


def test_the_condition_on_a_task_is_the_same_as_gdbs(session: DebugSession) -> None:
    args = ["$cpu", "$comm", "$task->pid > 1", 'sizeof(struct task_struct) > 16 && $comm != "dd"']
    found = {}
    for by in ("plugin", "gdb"):
        if by == "gdb":
            session.gdb.cont(wait=False)
        with session.trace("vfs_read", args=args, when='$comm == "dd" && count == 7', by=by) as hits:
            dd(session, 5)
        found[by] = [comparable(hit) for hit in hits]
        assert {tuple(hit.args.values()) for hit in hits} == {(hits[0].cpu, "dd", 1, 0)}
    assert len(found["plugin"]) == 5
    assert found["plugin"] == found["gdb"]


def test_a_function_that_switches_tasks(session: DebugSession) -> None:
    with session.trace("schedule", args=["$task->pid"], ret=True) as hits:
        session.exec("for each in $(seq 30); do sleep 0.01; done", timeout=SECONDS, check=True)
    assert len(hits) >= 30
    assert all(hit.task and hit.task.pid == hit.args["$task->pid"] for hit in hits)


def test_counts_of_four_cpus_are_exact(builtin: LaunchSpec) -> None:
    spec = msgspec.structs.replace(builtin, cpus=4)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as made:
        each = "dd if=/dev/zero of=/dev/null bs=7 count=5000"
        line = " ".join(f"taskset {1 << cpu} {each} &" for cpu in range(4)) + " wait"
        made.exec("true", timeout=SECONDS)
        with (
            made.trace("vfs_read", args=["count"], when="count == 7", ret=True) as hits,
            made.trace("vfs_read", when="count == 7", count_only=True) as counts,
        ):
            made.exec(line, timeout=SECONDS, check=True)
        assert len(hits) == 20_000
        assert {hit.ret for hit in hits} == {7}
        assert {hit.cpu for hit in hits} == {0, 1, 2, 3}
        assert counts.counts == {"vfs_read": 20_000}


def test_a_kernel_that_kaslr_has_moved(builtin: LaunchSpec) -> None:
    parameters = tuple(each for each in builtin.parameters if each != "nokaslr")
    spec = msgspec.structs.replace(builtin, parameters=parameters)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as made:
        made.exec("true", timeout=SECONDS)
        with made.trace("vfs_read", args=[NAME], when=READ, by="plugin") as hits:
            dd(made, 10)
        assert [hit.args[NAME] for hit in hits] == ["zero"] * 10


def test_a_trace_at_the_reset_vector_sees_the_boot(builtin: LaunchSpec) -> None:
    spec = msgspec.structs.replace(builtin, halt=True)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as made:
        with made.trace([Probe("start_kernel"), Probe("kernel_init")]) as hits:
            made.exec("true", timeout=SECONDS)
        assert [hit.symbol for hit in hits] == ["start_kernel", "kernel_init"]
        assert made.status == "paused"


def test_gdb_runs_the_guest_that_it_holds(session: DebugSession) -> None:
    session.gdb.breakpoint("do_sys_openat2", when='$_streq(filename, "/nothing")')
    with session.trace("vfs_read", args=["count"], when=READ) as hits:
        assert hits.collector == "the plugin"
        assert session.gdb.state is State.RUNNING
        dd(session, 50)
    assert session.gdb.stopped
    assert len(hits) == 50


def test_what_only_gdb_can(session: DebugSession) -> None:
    for text, why in (
        ("file->f_path", "file->f_path: a value of type struct path is not a number or a string"),
        ("ret", "ret: ret is neither in a register nor in memory there"),
    ):
        with session.trace("vfs_read", count=1, args=[text]) as hits:
            assert (hits.collector, hits.reason) == ("GDB", why)
        if session.gdb.stopped:
            session.gdb.cont(wait=False)
    with pytest.raises(NotCompiledError, match="ret is neither in a register nor in memory"):
        session.trace("vfs_read", args=["ret"], by="plugin")


def test_gdb_takes_only_the_probe_that_cannot_be_compiled(session: DebugSession) -> None:
    probes = [Probe("vfs_read", ("count",)), Probe("vfs_write", ("file->f_path", "count"))]
    with session.trace(probes, when='count == 7 && $comm == "dd"') as hits:
        dd(session, 20)
    assert hits.collector == "the plugin and GDB"
    assert hits.reason == (
        "GDB collects vfs_write: file->f_path: a value of type struct path is not a number or a string"
    )
    found = [hit.symbol for hit in hits]
    assert (found.count("vfs_read"), found.count("vfs_write")) == (20, 20)
    times = [hit.time for hit in hits]
    assert times == sorted(times)
    # dd reads, and then writes what it has read.
    assert found == ["vfs_read", "vfs_write"] * 20


@pytest.mark.parametrize("overflow", ["block", "drop"])
def test_rings_that_are_full(session: DebugSession, overflow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RING_BYTES", 1 << 13)
    monkeypatch.setattr(link, "_LEAST_RING", 1 << 13)
    with session.trace("vfs_read", args=["count"], when=READ, overflow=overflow) as hits:  # type: ignore[arg-type]
        dd(session, 20_000)
    lost = int(hits.notes[0].split()[0]) if hits.notes else 0
    assert len(hits) + lost == 20_000
    assert overflow == "drop" or lost == 0


def test_a_tracer_that_is_killed_or_stopped_leaves_a_guest_that_runs(session: DebugSession) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "trace", "vfs_read:count", "--json", "--by", "plugin"]
    for number in (signal.SIGKILL, signal.SIGINT):
        with process.start(argv, stdout=process.PIPE, stderr=process.PIPE) as tracer:
            assert tracer.stderr is not None
            assert tracer.stdout is not None
            lines = iter(tracer.stderr.readline, b"")
            assert any(b"tracing; Ctrl-C ends it" in line for line in lines)
            dd(session, 100)
            assert json.loads(tracer.stdout.readline())["symbol"] == "vfs_read"
            os.kill(tracer.pid, number)
            tracer.stdout.read()
            tracer.stderr.read()
        assert (tracer.returncode == 0) == (number == signal.SIGINT)
    dd(session, 100)
    assert session.status == "running"


def test_the_command_line(session: DebugSession, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["trace", "schedule", "vfs_read", "--count-only", "--timeout", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert "the plugin collects: it can collect all of this" in err
    assert [line.split()[1] for line in out.splitlines()] == ["schedule", "vfs_read"]
    assert status_of(["trace", "schedule", "--count", "3", "--json"]) == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [hit["symbol"] for hit in hits] == ["schedule"] * 3


def test_a_clone(builtin: LaunchSpec) -> None:
    with vm.template(builtin, timeout=SECONDS) as template, template.clone() as clone:
        session = DebugSession(clone, owned=False)
        with session.trace("vfs_read", args=["count"], when=READ, by="plugin") as hits:
            dd(session, 25)
        session.close()
        assert len(hits) == 25
