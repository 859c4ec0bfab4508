"""Traces of a running kernel: no hit is lost, and the guest continues."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import process, session, vm
from vmdebug.deadline import Deadline
from vmdebug.debugger.runstate import State
from vmdebug.errors import GdbError
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession
from vmdebug.trace.hit import Argument

HITS = 500
NAME = "(char *)file->f_path.dentry->d_name.name"


def soon() -> Deadline:
    return Deadline.after(SECONDS)


@pytest.fixture
def attached(builtin: LaunchSpec) -> Iterator[DebugSession]:
    """A session on the builtin guest, at its shell."""
    machine = vm.launch(builtin, bound=True, timeout=SECONDS)
    with DebugSession(machine, owned=True) as made:
        made.console.wait_ready(timeout=SECONDS)
        yield made


def test_no_hit_is_lost(attached: DebugSession) -> None:
    with attached.gdb.trace("vfs_read", args=["count", NAME, "*pos"]) as hits:
        attached.exec(f"dd if=/bin/busybox of=/dev/null bs=1 count={HITS}", timeout=SECONDS, check=True)
    assert attached.gdb.stopped
    by_dd = [hit for hit in hits if hit.args[NAME] == "busybox"]
    assert [hit.args["count"] for hit in by_dd] == [1] * HITS
    assert [hit.args["*pos"] for hit in by_dd] == list(range(HITS))
    assert {hit.task.comm for hit in by_dd if hit.task} == {"dd"}
    assert len({hit.task for hit in by_dd}) == 1
    times = [hit.time for hit in hits]
    assert times == sorted(times)
    guest_times = [hit.guest_time for hit in hits if hit.guest_time is not None]
    assert len(guest_times) == len(hits)
    assert guest_times == sorted(guest_times)
    attached.gdb.cont(wait=False)
    assert attached.exec("echo on").stdout == "on\n"


def test_condition_count_backtrace_and_what_is_returned(attached: DebugSession) -> None:
    gdb = attached.gdb
    gdb.cont(wait=False)
    condition = f'count == 7 && $_streq({NAME}, "zero")'
    with gdb.trace("vfs_read", args=["count"], when=condition, count=3, backtrace=True, ret=True) as hits:
        attached.exec("dd if=/dev/zero of=/dev/null bs=7 count=20", timeout=SECONDS, check=True)
    assert gdb.state is State.RUNNING
    assert hits.full
    assert [(hit.args["count"], hit.ret) for hit in hits] == [(7, 7)] * 3
    assert [call.function for call in hits[0].backtrace][:2] == ["vfs_read", "ksys_read"]
    assert attached.exec("echo on").stdout == "on\n"


def test_what_is_returned_by_a_function_that_begins_with_inlined_code(attached: DebugSession) -> None:
    with attached.gdb.trace("sched_setaffinity", ret=True) as hits:
        attached.exec("taskset 1 true", timeout=SECONDS, check=True)
    assert hits.notes == ()
    assert {hit.ret for hit in hits} == {0}


def test_hits_of_three_cpus_are_fetched_while_they_come(builtin: LaunchSpec) -> None:
    machine = vm.launch(msgspec.structs.replace(builtin, cpus=3), bound=True, timeout=SECONDS)
    with DebugSession(machine, owned=True) as made:
        made.console.wait_ready(timeout=SECONDS)
        each = f"dd if=/dev/zero of=/dev/null bs=7 count={HITS // 5}"
        line = f"{each} & taskset 2 {each} & taskset 4 {each} & wait"
        gdb = made.gdb
        with gdb.trace("vfs_read", args=["count"], when="count == 7") as hits:
            running = made.exec(line, wait=False)
            deadline = soon()
            while len(hits) < 3 * (HITS // 5):
                assert not deadline.passed
            assert running.result().status == 0
        assert len(hits) == 3 * (HITS // 5)
        assert {hit.cpu for hit in hits} >= {1, 2}


def test_the_cpu_and_the_task_of_a_hit_in_expressions(builtin: LaunchSpec) -> None:
    """As the plugin's; to GDB alone they are convenience variables that nothing sets."""
    machine = vm.launch(msgspec.structs.replace(builtin, cpus=2), bound=True, timeout=SECONDS)
    line = "for cpu in 1 2; do taskset $cpu cat /etc/passwd; taskset $cpu head -n 1 /etc/passwd; done"
    with DebugSession(machine, owned=True) as made:
        made.console.wait_ready(timeout=SECONDS)
        gdb = made.gdb
        args = ("$cpu", "$comm", "$task", "$task->pid", '$comm == "cat"', "$cpu - 1 < 0", "sizeof($comm)")
        with gdb.trace("do_sys_openat2", args=args) as hits:
            made.exec(line, timeout=SECONDS, check=True)
        assert {hit.cpu for hit in hits} == {0, 1}
        assert {"cat", "head"} <= {hit.args["$comm"] for hit in hits}
        tasks: dict[Argument, Argument] = {}
        for hit in hits:
            assert hit.task is not None
            cpu, comm, task, pid, is_cat, is_first, size = hit.args.values()
            assert (cpu, comm, pid, size) == (hit.cpu, hit.task.comm, hit.task.pid, 16)
            assert (is_cat, is_first) == (comm == "cat", cpu == 0)
            assert tasks.setdefault(pid, task) == task
        assert all(isinstance(task, int) and task >> 47 == 0x1FFFF for task in tasks.values())
        for when, expected in (
            ('$comm == "cat"', {("cat", 0), ("cat", 1)}),
            ('$cpu == 1 && "cat" == $comm', {("cat", 1)}),
            ('$_streq($comm, "head") && $task->pid > 1 && $comm != "cat"', {("head", 0), ("head", 1)}),
        ):
            with gdb.trace("do_sys_openat2", when=when) as hits:
                made.exec(line, timeout=SECONDS, check=True)
            assert {(hit.task and hit.task.comm, hit.cpu) for hit in hits} == expected
            assert hits.notes == ()
        assert gdb.console("print $comm").split() == ["$1", "=", "void"]
        with pytest.raises(GdbError, match=r"a trace: \$foo at vfs_read: there is no \$foo: ") as raised:
            gdb.trace("vfs_read", args=["$foo"]).__enter__()
        assert raised.value.hint == "set it before the trace: set $foo = 1"


def test_ctrl_c_leaves_a_guest_that_runs(builtin: LaunchSpec) -> None:
    machine = vm.launch(builtin, bound=True, timeout=SECONDS)
    with session.attach(machine.name) as other:
        other.console.wait_ready(timeout=SECONDS)
        argv = [sys.executable, "-m", "vmdebug.cli", "trace", "vfs_read:count", "--json"]
        tracer = process.start(argv, stdout=process.PIPE)
        assert tracer.stdout is not None
        with tracer, tracer.stdout as lines:
            other.console.sendline("while :; do read line < /proc/uptime; done")
            first = json.loads(lines.readline())
            os.kill(tracer.pid, signal.SIGINT)
            rest = [json.loads(line) for line in lines]
        assert tracer.returncode == 0
        assert all("count" in hit["args"] for hit in [first, *rest])
        assert machine.status() == "running"
    machine.stop(force=True)
