"""Something that a thread makes before it is needed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from vmdebug.plugin.prewarm import Prewarmer


class Maker:
    """Makes strings of numbers after `go` is set, and records which it has closed; 0 fails."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.ended: list[str] = []

    def make(self, wanted: int) -> str:
        self.go.wait()
        return f"{wanted} of {100 // wanted}"

    def end(self, made: str) -> None:
        self.ended.append(made)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def beforehand(maker: Maker) -> Iterator[Prewarmer[int, str]]:
    made = Prewarmer(maker.make, end=maker.end)
    with contextlib.closing(made):
        yield made
        maker.go.set()


def test_nothing_was_begun(beforehand: Prewarmer[int, str]) -> None:
    assert beforehand.take(1) is None


def test_what_was_begun_is_taken_once_and_not_ended(maker: Maker, beforehand: Prewarmer[int, str]) -> None:
    maker.go.set()
    beforehand.begin(1)
    assert beforehand.take(1) == "1 of 100"
    assert beforehand.take(1) is None
    beforehand.close()
    assert maker.ended == []


def test_what_is_not_wanted_stays_until_something_else_is_begun(
    maker: Maker, beforehand: Prewarmer[int, str]
) -> None:
    maker.go.set()
    beforehand.begin(1)
    assert beforehand.take(2) is None
    assert beforehand.take(1) == "1 of 100"


def test_what_nobody_took_is_ended_even_if_it_comes_late(
    maker: Maker, beforehand: Prewarmer[int, str]
) -> None:
    beforehand.begin(1)
    beforehand.begin(2)
    beforehand.begin(4)
    maker.go.set()
    beforehand.close()
    assert maker.ended == ["1 of 100", "2 of 50", "4 of 25"]


def test_what_cannot_be_made_says_so_where_it_is_taken(maker: Maker, beforehand: Prewarmer[int, str]) -> None:
    maker.go.set()
    beforehand.begin(0)
    with pytest.raises(ZeroDivisionError):
        beforehand.take(0)
    assert beforehand.take(0) is None


def test_what_an_interrupted_wait_was_for_is_ended_when_it_comes(
    maker: Maker, beforehand: Prewarmer[int, str]
) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        beforehand.begin(1)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            beforehand.take(1)
    finally:
        signal.signal(signal.SIGALRM, before)
    maker.go.set()
    beforehand.close()
    assert maker.ended == ["1 of 100"]
