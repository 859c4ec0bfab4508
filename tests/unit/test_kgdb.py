"""The line to a machine in kgdb: its forms, its user, and the wait for the stub."""

from __future__ import annotations

import os
import socket
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from vmdebug import cli
from vmdebug.deadline import Deadline
from vmdebug.debugger.kgdb import endpoint, stub
from vmdebug.debugger.kgdb.endpoint import Endpoint
from vmdebug.debugger.kgdb.owner import KgdbOwner
from vmdebug.errors import DeadlineError, HostError, StateError, UsageError, VmError
from vmdebug.progress import Step, silent

SECONDS = 30.0


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """A terminal: the machine's end, and the name of ours."""
    machine, ours = os.openpty()
    tty.setraw(ours)
    yield machine, ours
    os.close(machine)
    os.close(ours)


class TestWhatItMayBe:
    def test_a_port_of_a_host(self) -> None:
        assert endpoint.parse("rack7:2001") == Endpoint("tcp", "rack7:2001")
        assert endpoint.parse("[::1]:2001") == Endpoint("tcp", "[::1]:2001")

    def test_a_device(self, pair: tuple[int, int]) -> None:
        name = os.ttyname(pair[1])
        assert endpoint.parse(name) == Endpoint("device", name)

    def test_a_socket(self, tmp_path: Path) -> None:
        path = tmp_path / "cable"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
        assert endpoint.parse(str(path)) == Endpoint("socket", str(path))

    def test_a_file_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="neither a serial device nor a socket"):
            endpoint.parse(str(tmp_path / "file"))

    def test_one_that_is_not_there(self) -> None:
        with pytest.raises(HostError, match="there is no /dev/ttyNONE9: No such file"):
            endpoint.parse("/dev/ttyNONE9")

    def test_a_bare_name_is_told_its_path(self) -> None:
        with pytest.raises(UsageError) as caught:
            endpoint.parse("null")
        assert caught.value.hint == "write /dev/null"


class TestOpening:
    def test_what_is_no_serial_line(self) -> None:
        with (
            pytest.raises(HostError, match="/dev/zero is not a serial line"),
            endpoint.opened(Endpoint("device", "/dev/zero"), 115200),
        ):
            pass

    def test_one_that_is_in_use(self, pair: tuple[int, int]) -> None:
        name = os.ttyname(pair[1])
        with (
            pytest.raises(StateError, match=rf"{name} is in use: pid {os.getpid()} "),
            endpoint.opened(Endpoint("device", name), 115200),
        ):
            pass

    def test_a_speed_that_there_is_not(self) -> None:
        with (
            pytest.raises(UsageError, match="no speed of 12345 baud"),
            endpoint.opened(Endpoint("device", "/dev/tty"), 12345),
        ):
            pass

    def test_a_socket_that_nobody_listens_at(self, tmp_path: Path) -> None:
        path = tmp_path / "cable"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
        with (
            pytest.raises(HostError, match=r"cannot connect to .*: Connection refused"),
            endpoint.opened(Endpoint("socket", str(path)), 0),
        ):
            pass

    def test_the_second_who_attaches_is_told_of_the_first(self) -> None:
        where = Endpoint("tcp", "rack7:2001")
        already = rf"attached at rack7:2001: pid {os.getpid()}"
        with KgdbOwner.claim(where), pytest.raises(StateError, match=already):
            KgdbOwner.claim(where)
        with KgdbOwner.claim(where):
            pass


class Stub:
    """The machine's end of a line: it answers only after the machine has stopped."""

    def __init__(self, stopped_after: int) -> None:
        self.ours, self._theirs = socket.socketpair()
        self.ours.setblocking(False)
        self._stopped_after = stopped_after
        self.acknowledged = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self._thread.join()
        self._theirs.close()

    def _run(self) -> None:
        heard = b""
        while heard.count(b"$?#3f") < self._stopped_after:
            heard += self._theirs.recv(100)
        for _ in range(self._stopped_after):
            self._theirs.sendall(b"noise+$S05#b8")
        while self._theirs.recv(1) == b"+":
            self.acknowledged += 1


class TestWaiting:
    @pytest.mark.parametrize("questions", [1, 3])
    def test_every_question_is_answered_before_gdb_comes(self, questions: int) -> None:
        told: list[Step] = []
        with Stub(questions) as machine:
            where = Endpoint("socket", "/cable")
            stub.ask(machine.ours.fileno(), where, deadline=Deadline.after(SECONDS), report=told.append)
        assert machine.acknowledged == questions
        note = "on the machine: echo g > /proc/sysrq-trigger"
        assert told == [Step("waiting for kgdb to answer at /cable", note=note)] * (questions - 1)

    def test_a_machine_that_does_not_stop(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(DeadlineError, match=r"waited 0\.1 s for kgdb to answer at /cable"):
            stub.ask(ours.fileno(), Endpoint("socket", "/cable"), deadline=Deadline.after(0.1), report=silent)

    def test_a_line_that_is_closed(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours, pytest.raises(VmError, match="the line /cable was closed"):
            stub.ask(ours.fileno(), Endpoint("socket", "/cable"), deadline=Deadline.after(9), report=silent)


def test_what_gdb_is_told_first() -> None:
    before = ("set $vmd_kgdb = 1", "set remote interrupt-sequence BREAK-g")
    assert stub.settings(Endpoint("tcp", "rack7:2001"), 9600) == before
    assert stub.settings(Endpoint("device", "/dev/ttyS0"), 9600) == (*before, "set serial baud 9600")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vm", "--kgdb", "h:1"], "--kgdb debugs a machine, and vm is a VM"),
        (["--kgdb", "h:1", "--until", "panic", "--timeout", "3"], "--until has no timeout with --kgdb"),
        (["--kgdb", "h:1", "--share"], "--share works with VMs only"),
        (["--baud", "9600"], "--baud needs --kgdb"),
        (["--guest", "builtin"], "--guest needs --kgdb"),
    ],
)
def test_words_that_do_not_go_together(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["attach", *words]) == 2
    assert said in capsys.readouterr().err
