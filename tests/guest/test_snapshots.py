"""Snapshots of real guests, with the VM and with a session and GDB."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, StateError, UsageError, VmError
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession, attach
from vmdebug.vm import Vm, launch, wait_shell


def soon() -> Deadline:
    return Deadline.after(SECONDS)


@pytest.fixture
def vm(builtin: LaunchSpec) -> Iterator[Vm]:
    spec = msgspec.structs.replace(builtin, name="vm", memory=256)
    with launch(spec, bound=True, timeout=SECONDS) as started:
        wait_shell.wait(started, copy=False, deadline=soon())
        yield started


def test_a_guest_goes_back_to_what_it_was(vm: Vm) -> None:
    assert vm.snapshots() == ()
    vm.exec("echo before >/tmp/x")
    vm.snapshot("first")
    assert vm.status() == "running"
    vm.exec("echo after >/tmp/x")
    vm.restore("first")
    assert vm.status() == "running"
    assert vm.exec("cat /tmp/x").stdout == "before\n"
    (first,) = vm.snapshots()
    assert first.tag == "first"
    assert first.bytes > 1 << 20
    with pytest.raises(UsageError, match="vm already has a snapshot first"):
        vm.snapshot("first")
    vm.delete_snapshot("first")
    assert vm.snapshots() == ()


def test_a_stopped_guest_stays_stopped(vm: Vm) -> None:
    vm.pause()
    vm.snapshot("stopped")
    assert vm.status() == "paused"
    vm.restore("stopped")
    assert vm.status() == "paused"


def test_a_guest_that_has_panicked_lives_again(vm: Vm) -> None:
    vm.snapshot("alive")
    with vm.console() as console:
        console.wait_ready(timeout=SECONDS)
        console.sendline("echo c >/proc/sysrq-trigger")
        with pytest.raises(VmError, match="Kernel panic"):
            console.expect("never said", timeout=SECONDS)
        assert vm.status() == "panicked"
        vm.restore("alive")
        console.line.restored()
        console.wait_ready(timeout=SECONDS)
    assert vm.status() == "running"
    assert vm.exec("echo back").stdout == "back\n"
    assert b"vmdebug: restored the snapshot alive\r\n" in vm.rundir.console_log.read_bytes()


def test_bad_tags_are_named_with_those_there_are(vm: Vm) -> None:
    vm.snapshot("one")
    for refused in (vm.restore, vm.delete_snapshot):
        with pytest.raises(UsageError, match="vm has no snapshot two") as caught:
            refused("two")
        assert caught.value.hint == "its snapshots are: one"
    with pytest.raises(UsageError, match="'a b' cannot be a snapshot's tag"):
        vm.snapshot("a b")


def test_with_gdb_breakpoints_stay_and_what_it_had_read_is_read_anew(vm: Vm) -> None:
    with DebugSession(vm, owned=False) as session:
        gdb = session.gdb
        jiffies = "(unsigned long)jiffies_64"
        session.snapshot("a")
        then = gdb.evaluate(jiffies)
        opened = gdb.breakpoint("do_sys_openat2")
        session.console.sendline("while :; do cat /etc/passwd; done")
        while gdb.evaluate(jiffies) == then:  # the guest may get there before its clock ticks
            stop = gdb.cont(timeout=SECONDS)
            assert stop.breakpoint is opened
        session.restore("a")
        assert gdb.stopped
        assert gdb.evaluate(jiffies) == then
        with pytest.raises(StateError, match="the guest has run since that frame was taken"):
            stop.frame.evaluate("filename")
        # That guest no longer exists: type the line again; the breakpoint is still set.
        session.console.sendline("cat /etc/passwd")
        assert gdb.cont(timeout=SECONDS).breakpoint is opened


def test_a_running_guest_runs_on_beside_gdb(vm: Vm) -> None:
    with DebugSession(vm, owned=False) as session:
        session.gdb.cont(wait=False)
        session.exec("echo before >/tmp/x")
        session.snapshot("a")
        session.exec("echo after >/tmp/x")
        session.restore("a")
        assert not session.gdb.stopped
        assert session.exec("cat /tmp/x").stdout == "before\n"


def test_a_deadline_that_passes_leaves_guest_and_session_as_they_were(vm: Vm) -> None:
    with attach(vm.name, timeout=SECONDS) as session:
        assert session.attach_timeout == SECONDS
        session.attach_timeout = 0
        with pytest.raises(DeadlineError, match="waited 0 s for GDB to be attached"):
            session.gdb  # noqa: B018 - the first use attaches it
        session.attach_timeout = SECONDS
        assert session.status == "running"
        with pytest.raises(DeadlineError):
            session.snapshot("a", timeout=0)
        session.gdb.cont(wait=False)
        with pytest.raises(DeadlineError):
            session.gdb.breakpoint("do_sys_openat2", timeout=0)
        assert session.gdb.breakpoints() == ()
        session.snapshot("a", timeout=SECONDS)
        with pytest.raises(DeadlineError):
            session.restore("a", timeout=0)
        assert session.exec("echo still here").stdout == "still here\n"
        session.restore("a")
