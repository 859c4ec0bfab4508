"""A command that is left going, and a debugger that stops the guest while somebody waits for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serial_guest import SerialGuest, shell_guest
from vmdebug.channel.serial.console import Console
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, StateError


class Debugger:
    """Says that the guest stands still, from `stop` on; the shells here do not really."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.stopped = False

    def fileno(self) -> int:
        return self._event

    def check_stop(self) -> None:
        if self.stopped:
            raise StateError("the guest has stopped", hint="wait_stop() returns that stop")

    def runs(self) -> bool:
        return not self.stopped

    def stop(self) -> None:
        self.stopped = True
        os.eventfd_write(self._event, 1)

    def close(self) -> None:
        os.close(self._event)


@pytest.fixture(scope="module")
def guest() -> Iterator[SerialGuest]:
    with shell_guest("dash") as line:
        yield line


@pytest.fixture
def console(guest: SerialGuest) -> Iterator[Console]:
    with guest.console() as opened:
        opened.wait_ready(timeout=30)
        yield opened
        opened.line.debugger = None
        assert opened.line.shell.execute("echo well", deadline=soon()).stdout == b"well\n"
        assert guest.left_over() == []


@pytest.fixture
def debugger(console: Console) -> Iterator[Debugger]:
    made = Debugger()
    console.line.debugger = made
    yield made
    made.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO that commands wait at."""
    made = tmp_path / "gate"
    os.mkfifo(made)
    return made


def soon() -> Deadline:
    return Deadline.after(30)


def test_a_command_is_left_going_and_its_result_stays(console: Console, gate: Path) -> None:
    running = console.line.shell.begin(f"read line <{gate}; echo got $line; exit 3", deadline=soon())
    gate.write_text("it\n")
    result = running.result(soon())
    assert (result.stdout, result.status) == (b"got it\n", 3)
    assert running.result(soon()) is result


def test_the_next_command_hears_out_the_one_before(console: Console, gate: Path) -> None:
    running = console.line.shell.begin(f"read line <{gate}; echo got $line", deadline=soon())
    gate.write_text("it\n")
    assert console.line.shell.execute("echo next", deadline=soon()).stdout == b"next\n"
    assert running.result(soon()).stdout == b"got it\n"


def test_a_stop_ends_the_wait_at_once_and_not_the_command(
    console: Console, debugger: Debugger, gate: Path
) -> None:
    running = console.line.shell.begin(f"read line <{gate}; echo got $line", deadline=soon())
    debugger.stop()
    for _ in range(2):
        with pytest.raises(StateError, match="the guest has stopped") as raised:
            running.result(soon())
        assert "wait_stop()" in raised.value.hint
    debugger.stopped = False
    gate.write_text("it\n")
    assert running.result(soon()).stdout == b"got it\n"


def test_a_stop_before_the_command_has_begun_leaves_a_console_that_works(
    console: Console, debugger: Debugger
) -> None:
    debugger.stop()
    with pytest.raises(StateError, match="the guest has stopped"):
        console.line.shell.execute("echo lost", deadline=soon())
    debugger.stopped = False


def test_a_stop_ends_other_waits_too(console: Console, debugger: Debugger) -> None:
    debugger.stop()
    with pytest.raises(StateError, match="the guest has stopped"):
        console.expect("nobody says this", timeout=30)


def test_a_result_that_comes_too_late_stays_an_error(console: Console, gate: Path) -> None:
    running = console.line.shell.begin(f"read line <{gate}", deadline=soon())
    for _ in range(2):
        with pytest.raises(DeadlineError, match=r"to end in the guest"):
            running.result(Deadline.after(0.2))
