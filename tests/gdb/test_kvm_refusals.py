"""Requests that QEMU refuses only under KVM, from a stub: GDB learns of them when the guest should run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gdb.stub import Stub
from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.runstate import State
from vmdebug.errors import GdbError

Refusing = Callable[..., Gdb]


@pytest.fixture
def refusing(unconnected: Gdb, directory: Path, listener: socket.socket) -> Iterator[Refusing]:
    """A GDB connected to a stub that refuses given packets."""
    stubs: list[Stub] = []

    def connected(**answers: bytes) -> Gdb:
        stubs.append(Stub(listener, {packet.encode(): answer for packet, answer in answers.items()}))
        unconnected.connect(directory / "stub")
        return unconnected

    try:
        yield connected
    finally:
        unconnected.close()
        for stub in stubs:
            stub.close()


def test_a_hardware_breakpoint_too_many(refusing: Refusing) -> None:
    gdb = refusing(Z1=b"E22")
    gdb.breakpoint("main", hardware=True)
    with pytest.raises(GdbError, match="no hardware breakpoint or watchpoint is left") as raised:
        gdb.cont(timeout=20)
    assert "the CPU's debug registers" in raised.value.hint
    assert "Cannot insert hardware breakpoint 1" in raised.value.words


def test_gdb_is_usable_after_a_refusal(refusing: Refusing) -> None:
    gdb = refusing(Z1=b"E22")
    breakpoint_ = gdb.breakpoint("main", hardware=True)
    with pytest.raises(GdbError):
        gdb.cont(timeout=20)
    assert gdb.stopped
    breakpoint_.delete()
    gdb.cont(wait=False)
    assert gdb.state is State.RUNNING


def test_a_guest_that_kvm_cannot_run_any_more(directory: Path, listener: socket.socket) -> None:
    """QEMU's gdbstub reports its run state internal-error as SIGABRT."""
    stub = Stub(listener, {b"vCont;c": b"T06thread:01;"})
    source = f"source {shipped.gdbinit() / 'vmdebug.gdb'}"
    commands = (source, source, f"vmd-connect {directory / 'stub'}", "continue")
    argv = ["gdb", "-nx", "-q", "--batch", *(word for line in commands for word in ("-ex", line))]
    try:
        done = process.run(argv, deadline=Deadline.after(60), check=False)
    finally:
        stub.close()
    assert "QEMU cannot continue the guest: its state is internal-error\n" in done.stderr
    assert done.stderr.count("internal-error") == 1, "sourced twice it is as sourced once"


def test_a_breakpoint_where_nothing_is_mapped_yet(refusing: Refusing) -> None:
    gdb = refusing(Z0=b"E22", X=b"E14", M=b"E14")
    gdb.breakpoint("main")
    with pytest.raises(GdbError, match="the guest has not mapped the memory yet") as raised:
        gdb.cont(timeout=20)
    assert "hardware=True" in raised.value.hint
