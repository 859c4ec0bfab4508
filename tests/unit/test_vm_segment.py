"""Network segments: who is on one, its hub, and what is left when processes are killed; without QEMU."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.segmenthub import hub
from vmdebug import addressing, process
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError
from vmdebug.network import Nic
from vmdebug.vm import segment, segment_hub

LAB = Nic(kind="segment", name="lab")


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


class Guest:
    """What a QEMU has of a segment: inherited descriptors."""

    def __init__(self, vm: str) -> None:
        with segment.plugged([LAB], vm, deadline=Deadline.after(20)) as plugged:
            (self.nic,) = plugged.nics
            self.connection = socket.socket(fileno=os.dup(plugged.connections["lab"]))
            self.locks = [os.dup(fd) for fd in plugged.locks]
        self.connection.settimeout(20)

    def send(self, *frames: bytes) -> None:
        self.connection.sendall(b"".join(map(frame, frames)))

    def receive(self, *frames: bytes) -> None:
        """Check that these frames arrive next, and no other."""
        wanted = b"".join(map(frame, frames))
        found = b""
        while len(found) < len(wanted):
            found += self.connection.recv(len(wanted) - len(found))
        assert found == wanted

    def end(self) -> None:
        self.connection.close()
        for fd in self.locks:
            os.close(fd)
        self.locks = []


@pytest.fixture
def guests() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack
    segment.settle([LAB])


def guest(guests: contextlib.ExitStack, vm: str) -> Guest:
    found = Guest(vm)
    guests.callback(found.end)
    return found


def test_each_frame_reaches_all_others(runtime: Path, guests: contextlib.ExitStack) -> None:
    a, b, c = (guest(guests, name) for name in "abc")
    assert [each.nic.ip for each in (a, b, c)] == ["10.177.196.1", "10.177.196.2", "10.177.196.3"]
    a.send(b"first", b"second")
    b.receive(b"first", b"second")
    c.receive(b"first", b"second")
    b.send(b"back")
    a.receive(b"back")
    c.receive(b"back")
    directory = runtime / "vmdebug/.segments/lab"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in directory.iterdir()} == {"1", "2", "3", "hub.sock", "hub.lock", "hub.log"}


def test_a_frame_in_parts(runtime: Path, guests: contextlib.ExitStack) -> None:
    a, b = guest(guests, "a"), guest(guests, "b")
    whole = frame(bytes(range(256)) * 200)
    for at in range(0, len(whole), 10_007):
        a.connection.sendall(whole[at : at + 10_007])
    b.receive(whole[4:])


def test_what_is_no_frame_ends_the_connection(runtime: Path, guests: contextlib.ExitStack) -> None:
    a, b, c = (guest(guests, name) for name in "abc")
    a.connection.sendall(b"\xff" * 8)
    assert a.connection.recv(1) == b""
    b.send(b"still there")
    c.receive(b"still there")


def test_a_guest_that_does_not_read_hinders_nobody(runtime: Path, guests: contextlib.ExitStack) -> None:
    a, b, stopped = guest(guests, "a"), guest(guests, "b"), guest(guests, "stopped")
    data = bytes(50_000)
    for _ in range(3 * segment_hub.QUEUED // len(data)):
        a.send(data)
        b.receive(data)
    a.send(b"last")
    b.receive(b"last")
    stopped.receive(data)


def test_the_last_guest_ends_the_segment(runtime: Path) -> None:
    a, b = Guest("a"), Guest("b")
    process_of_hub = hub(runtime)
    a.end()
    segment.settle([a.nic])
    assert process_of_hub.alive()
    b.end()
    segment.settle([b.nic])
    assert process_of_hub.wait(20)
    assert not (runtime / "vmdebug").exists()


def test_a_number_is_free_again_and_is_first_that_of_the_same_vm(
    runtime: Path, guests: contextlib.ExitStack
) -> None:
    a, b, c = (guest(guests, name) for name in "abc")
    b.end()
    c.end()
    assert guest(guests, "c").nic.ip == "10.177.196.3"
    assert guest(guests, "d").nic.ip == "10.177.196.2"
    assert segment.preview([LAB], "e")[0].ip == "10.177.196.4"
    assert a.nic == addressing.member(LAB, 1)


def test_a_launch_that_ends_early_leaves_nothing(runtime: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="QEMU"),
        segment.plugged([LAB], "a", deadline=Deadline.after(20)),
    ):
        raise RuntimeError("QEMU did not start")
    segment.settle([LAB])
    assert not (runtime / "vmdebug").exists()


def test_a_killed_hub_is_named_and_swept(runtime: Path, guests: contextlib.ExitStack) -> None:
    a = guest(guests, "a")
    killed = hub(runtime)
    killed.signal(signal.SIGKILL)
    assert killed.wait(20)
    with pytest.raises(ConnectionResetError):
        a.connection.recv(1)
    with pytest.raises(StateError, match="the hub of the segment lab was killed, and a have lost"):
        Guest("b")
    segment.sweep()
    assert (runtime / "vmdebug/.segments/lab").exists()
    a.end()
    segment.sweep()
    assert not (runtime / "vmdebug/.segments").exists()
    assert guest(guests, "b").nic.ip == "10.177.196.1"


def test_restarted_guests_have_a_segment_again_whose_hub_was_killed(
    runtime: Path, guests: contextlib.ExitStack
) -> None:
    a, b = guest(guests, "a"), guest(guests, "b")
    killed = hub(runtime)
    killed.signal(signal.SIGKILL)
    assert killed.wait(20)
    a.end()
    again = guest(guests, "a")
    b.end()
    other = guest(guests, "b")
    assert [each.nic.ip for each in (again, other)] == ["10.177.196.1", "10.177.196.2"]
    again.send(b"back")
    other.receive(b"back")


def test_a_killed_launcher_leaves_nothing(runtime: Path) -> None:
    code = (
        "import os, signal\n"
        "from vmdebug.deadline import Deadline\n"
        "from vmdebug.network import Nic\n"
        "from vmdebug.vm import segment\n"
        "with segment.plugged([Nic(kind='segment', name='lab')], 'a', deadline=Deadline.after(20)):\n"
        "    print('joined', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = process.run([sys.executable, "-c", code], deadline=Deadline.after(60), check=False)
    assert (done.status, done.stdout) == (-signal.SIGKILL, "joined\n")
    segment.settle([LAB])
    assert not (runtime / "vmdebug").exists()
