from __future__ import annotations

import os
import pty
import signal
import termios
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.unit.serial_guest import line_guest
from vmdebug.channel.serial import terminal


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A keyboard's end and a program's end."""
    keyboard, program = pty.openpty()
    yield keyboard, program
    os.close(keyboard)
    os.close(program)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing; unlike SIG_IGN, this writes to the wakeup descriptor."""


def is_raw(fd: int) -> bool:
    return not termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_keys_arrive_as_they_are_typed_until_the_one_that_leaves(ends: tuple[int, int]) -> None:
    keyboard, program = ends
    with line_guest() as guest, guest.console() as console, terminal.raw(program):
        os.write(keyboard, b"ls\r\x03\xff\x1dnot this")
        assert terminal.relay(console.line, program, print)
        guest.wait_typed(b"ls\r\x03\xff")
    assert guest.typed == b"ls\r\x03\xff"


def test_what_the_guest_says_is_shown_until_its_end(ends: tuple[int, int]) -> None:
    _, program = ends
    shown: list[bytes] = []
    panic = b"[    1.000000] Kernel panic - not syncing: x\r\n"
    with line_guest() as guest, guest.console() as console:
        guest.say(b"hello \xff")
        guest.say(panic)
        guest.leave()
        assert not terminal.relay(console.line, program, shown.append)
    assert b"".join(shown) == b"hello \xff" + panic


def test_ctrl_c_ends_it_though_its_exception_was_lost(ends: tuple[int, int]) -> None:
    """Python ignores what a signal's handler raises in a callback; here the handler raises nothing."""
    _, program = ends
    before = signal.signal(signal.SIGINT, _ignore)
    try:
        with line_guest() as guest, guest.console() as console, terminal.interrupts() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                terminal.relay(console.line, program, print, interrupted=interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_no_terminal_is_typed_to_its_end_and_answered() -> None:
    read, write = os.pipe()
    os.write(write, b"uptime\n\x1d")
    os.close(write)
    shown: list[bytes] = []

    def answer() -> None:
        guest.wait_typed(b"uptime\n\x1d")
        guest.say(b"up 1 min\r\n")
        guest.leave()

    with line_guest() as guest, guest.console() as console:
        answering = threading.Thread(target=answer)
        answering.start()
        assert not terminal.relay(console.line, read, shown.append)
        answering.join()
    os.close(read)
    assert b"".join(shown) == b"up 1 min\r\n"


def test_a_terminal_is_as_before_after_the_block(ends: tuple[int, int]) -> None:
    before = termios.tcgetattr(ends[1])
    with terminal.raw(ends[1]):
        assert is_raw(ends[1])
    assert termios.tcgetattr(ends[1]) == before


@pytest.mark.parametrize("number", terminal.ENDS)
def test_a_terminal_is_as_before_after_a_signal(ends: tuple[int, int], number: signal.Signals) -> None:
    before = termios.tcgetattr(ends[1])
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, terminal.raw(ends[1]):
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert termios.tcgetattr(ends[1]) == before
    assert signal.getsignal(number) == handler


def test_a_terminal_is_as_before_after_an_error(ends: tuple[int, int]) -> None:
    before = termios.tcgetattr(ends[1])
    with pytest.raises(KeyboardInterrupt), terminal.raw(ends[1]):
        raise KeyboardInterrupt
    assert termios.tcgetattr(ends[1]) == before
