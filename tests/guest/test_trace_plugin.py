"""Traces by the plugin on the distribution's QEMU, whose plugins cannot read registers: they count.

`tests/newqemu` has the tests for a QEMU whose plugins can; see `make test-qemu`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import process, vm
from vmdebug.cli import status_of
from vmdebug.deadline import Deadline
from vmdebug.debugger.runstate import State
from vmdebug.errors import HostError, StateError
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession
from vmdebug.trace.probe import Probe
from vmdebug.vm import accel, features

CALLS = 40
ONE_CALL = "taskset 1 true"
FUNCTION = "sched_setaffinity"


@pytest.fixture
def counting(builtin: LaunchSpec) -> Iterator[DebugSession]:
    """A session on a guest whose QEMU has loaded the plugin, at its shell; two CPUs."""
    spec = msgspec.structs.replace(builtin, trace_ready="yes", accel="tcg", cpus=2)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as made:
        made.exec("true", timeout=SECONDS)
        yield made


def reason() -> str:
    qemu = process.find("qemu-system-x86_64", package="qemu-system-x86")
    version = features.of(qemu, deadline=Deadline.after(60)).version
    return f"QEMU {version}'s plugins cannot read registers; 9.2 or newer can"


def call(session: DebugSession, times: int = CALLS) -> None:
    line = f"for each in $(seq {times}); do {ONE_CALL}; done"
    session.exec(line, timeout=SECONDS, check=True)


def test_counts_are_exact_and_the_guest_does_not_stop(counting: DebugSession) -> None:
    with counting.trace([Probe(FUNCTION), Probe("kernel_init")], count_only=True) as hits:
        assert (hits.collector, hits.reason) == ("the plugin", "it can collect all of this")
        call(counting)
    assert hits.counts == {FUNCTION: CALLS, "kernel_init": 0}
    call(counting)
    hits.take()
    assert hits.counts == {FUNCTION: CALLS, "kernel_init": 0}


def test_what_it_cannot_read_is_refused_or_collected_by_the_guest(counting: DebugSession) -> None:
    for wanted in ({"args": ["pid"]}, {"when": "pid == 1", "count_only": True}, {"ret": True}):
        with pytest.raises(StateError) as raised:
            counting.trace(FUNCTION, by="plugin", **wanted)
        assert raised.value.message == reason()
        assert "with TCG, QEMU 9.2 or newer, and" in (raised.value.hint or "")
    with counting.trace(FUNCTION, args=["pid"]) as hits:
        assert (hits.collector, hits.reason) == ("the guest's kernel", reason())
        call(counting, 2)
    assert len(hits) == 2


def test_gdb_runs_a_guest_that_it_holds(counting: DebugSession) -> None:
    counting.gdb.breakpoint("do_exit")
    assert counting.gdb.stopped
    with counting.trace("schedule", count_only=True) as hits:
        assert hits.collector == "the plugin"
        assert counting.gdb.state is State.RUNNING
    assert counting.gdb.stopped


def test_a_place_of_which_only_gdb_knows(counting: DebugSession) -> None:
    with counting.trace("*vfs_read", count_only=True) as hits:
        assert hits.collector == "GDB"
        assert hits.reason == "*vfs_read is not the name of a function"


def test_a_trace_at_the_reset_vector_sees_the_boot(builtin: LaunchSpec) -> None:
    spec = msgspec.structs.replace(builtin, trace_ready="yes", accel="tcg", halt=True)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as session:
        with session.trace("start_kernel", count_only=True) as hits:
            session.exec("true", timeout=SECONDS)
        assert hits.counts == {"start_kernel": 1}
        assert session.status == "paused"


def test_the_guest_runs_on_when_its_tracer_is_killed(
    counting: DebugSession, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "trace", FUNCTION, "--count-only"]
    with process.start([*argv, "--by", "plugin"], stderr=process.PIPE) as tracer:
        assert tracer.stderr is not None
        lines = iter(tracer.stderr.readline, b"")
        assert any(b"tracing; Ctrl-C ends it" in line for line in lines)
        os.kill(tracer.pid, signal.SIGKILL)
    call(counting)
    with counting.trace(FUNCTION, count_only=True) as hits:
        call(counting)
    assert hits.counts == {FUNCTION: CALLS}


def test_the_command_line(counting: DebugSession, capsys: pytest.CaptureFixture[str]) -> None:
    calling = counting.exec(f"while :; do {ONE_CALL}; done", wait=False)
    assert status_of(["trace", FUNCTION, "--count-only", "--timeout", "2"]) == 0
    calling.cancel()
    out, err = capsys.readouterr()
    assert "the plugin collects: it can collect all of this" in err
    number, symbol = out.split()
    assert symbol == FUNCTION
    assert int(number) > 0
    assert status_of(["trace", f"{FUNCTION}:pid", "--by", "plugin"]) == 1
    assert reason() in capsys.readouterr().err


def test_without_registers_it_is_loaded_on_request_only(builtin: LaunchSpec) -> None:
    assert vm.plan(msgspec.structs.replace(builtin, accel="tcg")).untraceable == reason()
    for ready, loaded in (("auto", 0), ("yes", 1), ("no", 0)):
        plan = vm.plan(msgspec.structs.replace(builtin, accel="tcg", trace_ready=ready))
        assert plan.argv.count("-plugin") == loaded


def test_kvm_has_no_translator(builtin: LaunchSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "choose", lambda *_, **__: accel.Choice("kvm", "asked for"))
    plan = vm.plan(builtin)
    assert plan.untraceable == "the plugin that collects traces needs the accelerator TCG, not KVM"
    with pytest.raises(HostError, match="needs the accelerator TCG, not KVM") as raised:
        vm.plan(msgspec.structs.replace(builtin, trace_ready="yes"))
    assert raised.value.hint == 'start with accel="tcg"'
