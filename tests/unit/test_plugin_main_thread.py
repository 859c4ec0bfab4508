"""Interrupting a wait of the main thread."""

from __future__ import annotations

import contextlib
import queue
import select
import signal
import threading
import time
from collections.abc import Callable

import pytest

from vmdebug.plugin.main_thread import NUMBER, MainThreadInterrupt

NO_LIMIT_SECONDS = 3600.0


class Trouble(BaseException):
    """The exception."""


def soon(interrupter: MainThreadInterrupt) -> threading.Thread:
    def act() -> None:
        interrupter.interrupt(Trouble())

    thread = threading.Timer(0.05, act)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda: time.sleep(NO_LIMIT_SECONDS), id="sleep"),
        pytest.param(lambda: queue.Queue[None]().get(timeout=NO_LIMIT_SECONDS), id="lock"),
        pytest.param(lambda: select.poll().poll(1000 * NO_LIMIT_SECONDS), id="poll"),
        pytest.param(lambda: [None for _ in iter(int, 1)], id="busy"),
    ],
)
def test_whatever_the_main_thread_waits_in_ends(wait: Callable[[], object]) -> None:
    with MainThreadInterrupt() as interrupter:
        interrupter.arm()
        thread = soon(interrupter)
        with pytest.raises(Trouble):
            wait()
        thread.join()


def deaf() -> None:
    with contextlib.suppress(Exception):  # as tests do
        time.sleep(NO_LIMIT_SECONDS)


def test_code_that_catches_every_exception_is_ended_by_a_base_exception() -> None:
    with MainThreadInterrupt() as interrupter:
        interrupter.arm()
        thread = soon(interrupter)
        with pytest.raises(Trouble):
            deaf()
        thread.join()


def test_what_comes_while_it_is_not_armed_is_not_raised_then_nor_later() -> None:
    with MainThreadInterrupt() as interrupter:
        interrupter.interrupt(Trouble())
        time.sleep(0)  # where Python handles a signal
        interrupter.arm()
        time.sleep(0)
        assert interrupter.armed


def test_it_raises_once_for_each_arming() -> None:
    with MainThreadInterrupt() as interrupter:
        interrupter.arm()
        with pytest.raises(Trouble):
            interrupter.interrupt(Trouble())
        interrupter.interrupt(Trouble())
        assert not interrupter.armed


def test_the_handler_that_was_there_is_there_again() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(NUMBER, mine)
    try:
        with MainThreadInterrupt():
            assert signal.getsignal(NUMBER) is not mine
        assert signal.getsignal(NUMBER) is mine
    finally:
        signal.signal(NUMBER, before)


def test_an_interrupt_after_the_end_does_nothing() -> None:
    with MainThreadInterrupt() as interrupter:
        interrupter.arm()
    interrupter.interrupt(Trouble())
    assert signal.getsignal(NUMBER) is signal.SIG_DFL


def test_outside_the_main_thread_nothing_is_installed() -> None:
    seen: list[object] = []

    def run() -> None:
        with MainThreadInterrupt() as interrupter:
            interrupter.arm()
            seen.extend([interrupter.armed, signal.getsignal(NUMBER)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert seen == [False, signal.SIG_DFL]
