"""Requests that QEMU refuses only under KVM, from a stub: GDB learns of them when the guest should run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gdb.stub import Stub
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


def test_a_breakpoint_where_nothing_is_mapped_yet(refusing: Refusing) -> None:
    gdb = refusing(Z0=b"E22", X=b"E14", M=b"E14")
    gdb.breakpoint("main")
    with pytest.raises(GdbError, match="the guest has not mapped the memory yet") as raised:
        gdb.cont(timeout=20)
    assert "hardware=True" in raised.value.hint
