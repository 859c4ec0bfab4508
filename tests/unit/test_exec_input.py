"""The input of a command, where the way into the guest needs all of it before the command starts."""

from __future__ import annotations

import os

import pytest

from vmdebug.channel import shell
from vmdebug.channel.shell import Streams
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError


def test_input_that_ends_is_read_whole() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    os.close(writing)
    try:
        assert shell.all_input(Streams(stdin=reading), Deadline.after(20)) == b"abc"
    finally:
        os.close(reading)
    assert shell.all_input(Streams(stdin=b"x"), Deadline.after(20)) == b"x"
    assert shell.all_input(Streams(), Deadline.after(20)) is None


def test_input_that_does_not_end_is_an_error_that_says_so() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    try:
        with pytest.raises(DeadlineError, match="the end of the command's standard input") as caught:
            shell.all_input(Streams(stdin=reading), Deadline.after(0.05))
    finally:
        os.close(reading)
        os.close(writing)
    assert "--no-stdin" in caught.value.hint
