"""The pool of ports: one client each, whoever that is and however it ends."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdebug import process
from vmdebug.channel import port
from vmdebug.channel.port import PortAddress
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError


def soon() -> Deadline:
    return Deadline.after(20)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[list[PortAddress]]:
    addresses = [PortAddress(tmp_path / f"{n}.sock", tmp_path / f"{n}.lock") for n in range(3)]
    listeners = []
    for address in addresses:
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(str(address.socket))
        listeners[-1].listen()
    yield addresses
    for listener in listeners:
        listener.close()


def test_each_client_gets_a_port_of_its_own(pool: list[PortAddress]) -> None:
    taken = [port.take(pool, what="a port", deadline=soon()) for _ in pool]
    with pytest.raises(DeadlineError, match=r"waited 0.05 s for a port"):
        port.take(pool, what="a port", deadline=Deadline.after(0.05))
    taken[1].close()
    again = port.take(pool, what="a port", deadline=soon())
    for each in (taken[0], again, taken[2]):
        each.close()


def test_a_port_that_is_taken_is_not_connected_to(pool: list[PortAddress]) -> None:
    first = port.try_take(pool[0])
    assert first is not None
    assert port.try_take(pool[0]) is None
    first.close()
    second = port.try_take(pool[0])
    assert second is not None
    second.close()


def test_the_port_of_a_killed_client_is_free_again(pool: list[PortAddress]) -> None:
    script = (
        "import sys, time; from pathlib import Path; from vmdebug.channel import port\n"
        "port.try_take(port.PortAddress(Path(sys.argv[1]), Path(sys.argv[2])))\n"
        "print('taken', flush=True); time.sleep(60)"
    )
    argv = (sys.executable, "-c", script, pool[0].socket, pool[0].lock)
    with process.spawn(argv, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"taken\n"
        assert port.try_take(pool[0]) is None
        child.kill()
        child.wait()
        freed = port.try_take(pool[0])
        assert freed is not None
        freed.close()


def test_a_port_that_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(FileNotFoundError):
        port.try_take(PortAddress(tmp_path / "none.sock", tmp_path / "none.lock"))
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_bytes_go_both_ways_and_the_end_is_seen(tmp_path: Path) -> None:
    address = PortAddress(tmp_path / "sock", tmp_path / "lock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address.socket))
        listener.listen()
        opened = port.try_take(address)
        assert opened is not None
        qemu, _ = listener.accept()
        assert opened.receive() is None
        assert opened.send(b"to the guest") == 12
        assert qemu.recv(100) == b"to the guest"
        qemu.sendall(b"from the guest")
        assert opened.receive() == b"from the guest"
        qemu.close()
        assert opened.receive() == b""
        opened.close()
