"""A cancelled call ends its wait for the guest's shell; the shell's debugger is heard as before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.port import PortAddress, Ways
from vmdebug.deadline import wait_ready
from vmdebug.errors import StateError
from vmdebug.faces.mcp.cancelling import cancellable


class Debugger:
    """A debugger whose guest stops when `stop` is called."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def stop(self) -> None:
        os.write(self.write, b"x")

    def fileno(self) -> int:
        return self.read

    def check_stop(self) -> None:
        raise StateError("the guest has stopped")

    def runs(self) -> bool:
        return True


@pytest.fixture
def debugger() -> Iterator[Debugger]:
    made = Debugger()
    yield made
    os.close(made.read)
    os.close(made.write)


@pytest.fixture
def shell(tmp_path: Path) -> GuestShell:
    address = PortAddress(tmp_path / "sock", tmp_path / "lock")
    ways = Ways([], address, address, address, tmp_path / "log", tmp_path / "memory")
    return GuestShell(ways, check=lambda: None)


def raising(words: str) -> Callable[[], None]:
    def check() -> None:
        raise StateError(words)

    return check


def test_the_wait_ends_when_the_call_is_cancelled(shell: GuestShell) -> None:
    with cancellable(shell, raising("exec was cancelled")) as both:
        assert shell.debugger is both
        assert not both.runs()
        assert not wait_ready(both.fileno(), seconds=0)
        both.cancel()
        both.cancel()
        assert wait_ready(both.fileno(), seconds=5)
        with pytest.raises(StateError, match="exec was cancelled"):
            both.check_stop()
    assert shell.debugger is None
    both.cancel()  # comes too late


def test_a_command_that_was_begun_hears_the_debugger(shell: GuestShell, debugger: Debugger) -> None:
    shell.debugger = debugger
    with cancellable(shell, lambda: None) as both:
        assert both.runs()
        assert not wait_ready(both.fileno(), seconds=0)
        debugger.stop()
        assert wait_ready(both.fileno(), seconds=5)
        with pytest.raises(StateError, match="the guest has stopped"):
            both.check_stop()
    assert shell.debugger is debugger
    assert both.fileno() == debugger.read  # the command keeps it
    with pytest.raises(StateError, match="the guest has stopped"):
        both.check_stop()
