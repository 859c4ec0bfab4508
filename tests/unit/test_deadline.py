import contextlib
import itertools
import os
import re
import select
from typing import Any

import pytest

from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import DeadlineError, UsageError


def test_what_remains_is_at_most_what_was_given() -> None:
    assert 0 < Deadline.after(5).left("a thing") <= 5


def test_a_passed_deadline_says_what_was_waited_for_and_how_long() -> None:
    deadline = Deadline.after(0)
    assert deadline.passed
    with pytest.raises(DeadlineError, match="waited 0 s for QEMU to answer on QMP") as caught:
        deadline.left("QEMU to answer on QMP")
    assert caught.value.exit_status == 5


def test_at_most_keeps_the_sooner_of_two() -> None:
    soon, late = Deadline.after(1), Deadline.after(100)
    assert late.at_most(1).at < late.at
    assert soon.at_most(100) is soon


def test_remaining_is_0_after_the_deadline() -> None:
    assert Deadline.after(-1).remaining == 0
    assert 0 < Deadline.after(5).remaining <= 5


def test_the_pauses_grow_to_50_ms_and_no_further() -> None:
    assert list(itertools.islice(Deadline.after(100).pauses("it"), 8)) == [
        *(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05)
    ]


def test_the_pauses_allow_one_try_and_then_say_what_was_waited_for() -> None:
    pauses = Deadline.after(0).pauses("QEMU to listen")
    assert next(pauses) == 0
    with pytest.raises(DeadlineError, match="waited 0 s for QEMU to listen"):
        next(pauses)


def test_wait_ready_returns_the_descriptors_that_are_ready() -> None:
    with contextlib.ExitStack() as pipes:
        (quiet, _), (read, write) = _pipe(pipes), _pipe(pipes)
        assert wait_ready(quiet, read, seconds=0) == frozenset()
        os.write(write, b"x")
        assert wait_ready(quiet, read, seconds=None) == {read}
        assert wait_ready(quiet, seconds=0, events={write: select.POLLOUT}) == {write}


@pytest.mark.parametrize("seconds", [float("inf"), 1e12])
def test_no_timeout_is_too_long_to_wait_for(seconds: float) -> None:
    deadline = Deadline.after(seconds)
    with contextlib.ExitStack() as pipes:
        read, write = _pipe(pipes)
        os.write(write, b"x")
        assert wait_ready(read, seconds=deadline.left("it")) == {read}


def test_wait_ready_ignores_a_negative_descriptor() -> None:
    assert wait_ready(-1, seconds=0) == frozenset()


def test_wait_ready_returns_at_once_where_the_other_end_is_closed() -> None:
    with contextlib.ExitStack() as pipes:
        read, _ = _pipe(pipes)
        other, write = os.pipe()
        pipes.callback(os.close, other)
        os.close(write)
        assert wait_ready(read, other, seconds=None) == {other}


def _pipe(pipes: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    pipes.callback(os.close, read)
    pipes.callback(os.close, write)
    return read, write


@pytest.mark.parametrize("seconds", ["5", None, float("nan"), [1]])
def test_what_is_no_number_of_seconds_is_an_error_that_says_so(seconds: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(f"timeout={seconds!r} is not a number of seconds")):
        Deadline.after(seconds)
