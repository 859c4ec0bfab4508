import select
import socket
from collections.abc import Iterator

import pytest

from vmdebug.channel.serial.drain import Drain


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Drain]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        drain = Drain(ours)
        yield theirs, drain
        drain.close()


def readable(drain: Drain) -> bool:
    poll = select.poll()
    poll.register(drain.fileno(), select.POLLIN)
    return bool(poll.poll(5000))


def collect(drain: Drain, size: int) -> bytes:
    data = b""
    while len(data) < size:
        assert readable(drain)
        data += drain.read()
    return data


def test_a_writer_is_never_held_up_by_a_reader_that_is_elsewhere(ends: tuple[socket.socket, Drain]) -> None:
    theirs, drain = ends
    theirs.settimeout(10)
    said = bytes(range(256)) * 8192  # 2 MiB, ten times what a socket holds
    theirs.sendall(said)
    assert collect(drain, len(said)) == said


def test_single_bytes_come_in_their_order(ends: tuple[socket.socket, Drain]) -> None:
    theirs, drain = ends
    theirs.settimeout(10)
    for number in range(2000):
        theirs.send(bytes([number % 251]))
    assert collect(drain, 2000) == bytes(number % 251 for number in range(2000))


def test_the_end_is_readable_after_the_last_words(ends: tuple[socket.socket, Drain]) -> None:
    theirs, drain = ends
    theirs.sendall(b"bye")
    theirs.close()
    assert collect(drain, 3) == b"bye"
    assert readable(drain)
    assert drain.read() == b""
    assert readable(drain), "the end stays"


def test_what_was_taken_is_not_readable_any_more(ends: tuple[socket.socket, Drain]) -> None:
    theirs, drain = ends
    theirs.sendall(b"x")
    assert collect(drain, 1) == b"x"
    poll = select.poll()
    poll.register(drain.fileno(), select.POLLIN)
    assert not poll.poll(0)
