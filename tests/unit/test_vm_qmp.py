from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, QmpError, StateError
from vmdebug.process import ProcessRef
from vmdebug.vm import qmp
from vmdebug.vm.qmp import Event

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": ["oob"]}}
STAMP = {"seconds": 1700000000, "microseconds": 250000}


def soon() -> Deadline:
    return Deadline.after(10)


class Server:
    """QEMU's side of a QMP socket, which sends what the test says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(1)
        self._thread: threading.Thread | None = None

    def serve(self, *talks: Callable[[Client], None]) -> None:
        """Accept a client for each talk, in a thread; close the connection at its end."""

        def run() -> None:
            for talk in talks:
                accepted, _ = self._listening.accept()
                with accepted:
                    talk(Client(accepted))

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.join()
        self._listening.close()


class Client:
    """The connection, from the server's side."""

    def __init__(self, accepted: socket.socket) -> None:
        self._socket = accepted
        self._unread = ""
        self.fds: list[int] = []

    def say(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\r\n")

    def hear(self) -> dict[str, Any]:
        """Return the next message, which no newline ends; {} when the client has closed."""
        while True:
            try:
                message, end = json.JSONDecoder().raw_decode(self._unread)
            except json.JSONDecodeError:
                data, fds, _, _ = socket.recv_fds(self._socket, 65536, 4)
                self.fds += fds
                if not data:
                    return {}
                self._unread = (self._unread + data.decode()).lstrip()
            else:
                self._unread = self._unread[end:].lstrip()
                return dict(message)

    def greet(self) -> None:
        self.say(GREETING)
        asked = self.hear()
        assert asked["execute"] == "qmp_capabilities"
        self.say({"return": {}, "id": asked["id"]})

    def answer(self, **reply: Any) -> dict[str, Any]:
        asked = self.hear()
        self.say({"id": asked["id"], **reply})
        return asked

    def event(self, name: str, **data: Any) -> None:
        self.say({"event": name, "data": data, "timestamp": STAMP})

    def until_gone(self) -> None:
        while self.hear():
            pass


@pytest.fixture
def server(runtime: Path) -> Iterator[Server]:
    with Server(runtime / "qmp.sock") as one:
        yield one


@pytest.fixture
def ended() -> ProcessRef:
    """A process that has ended."""
    with process.spawn(["sleep", "1000"]) as child:
        ref = ProcessRef.of(child.pid)
    assert ref is not None
    return ref


@pytest.fixture
def living() -> Iterator[ProcessRef]:
    """A process that runs."""
    with process.spawn(["sleep", "1000"]) as child:
        ref = ProcessRef.of(child.pid)
        assert ref is not None
        yield ref


def test_a_command_has_its_answer(server: Server) -> None:
    asked: list[dict[str, Any]] = []

    def talk(client: Client) -> None:
        client.greet()
        asked.append(client.answer(**{"return": {"status": "running"}}))
        client.until_gone()

    server.serve(talk)
    with qmp.connect(server.path, deadline=soon()) as connection:
        assert connection.execute("query-status", {"a": 1}, deadline=soon()) == {"status": "running"}
    server.join()
    assert asked[0]["execute"] == "query-status"
    assert asked[0]["arguments"] == {"a": 1}


def test_a_refused_command_says_what_was_asked(server: Server) -> None:
    def talk(client: Client) -> None:
        client.greet()
        client.answer(error={"class": "GenericError", "desc": "Device 'x' not found"})
        client.until_gone()

    server.serve(talk)
    with (
        qmp.connect(server.path, deadline=soon()) as connection,
        pytest.raises(QmpError, match="QEMU refused device_del: Device 'x' not found") as caught,
    ):
        connection.execute("device_del", {"id": "x"}, deadline=soon())
    assert caught.value.detail == '{"id": "x"}'


def test_nobody_listens(runtime: Path) -> None:
    with pytest.raises(qmp.NoListenerError, match="no process listens"):
        qmp.connect(runtime / "nothing.sock", deadline=soon())


def test_a_socket_that_was_left_behind(runtime: Path) -> None:
    path = runtime / "old.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with pytest.raises(qmp.NoListenerError):
        qmp.connect(path, deadline=soon())


def test_a_server_that_does_not_greet_is_not_waited_for_beyond_the_deadline(server: Server) -> None:
    server.serve(Client.until_gone)
    with pytest.raises(DeadlineError) as caught:
        qmp.connect(server.path, deadline=Deadline.after(0.2))
    assert "one client at a time" in caught.value.hint


def test_a_full_queue_is_not_waited_for_beyond_the_deadline(server: Server) -> None:
    waiting = []
    try:
        while True:
            one = socket.socket(socket.AF_UNIX)
            waiting.append(one)
            one.setblocking(False)
            try:
                one.connect(str(server.path))
            except BlockingIOError:
                break
        with pytest.raises(DeadlineError) as caught:
            qmp.connect(server.path, deadline=Deadline.after(0.1))
        assert "one client at a time" in caught.value.hint
    finally:
        for one in waiting:
            one.close()


def test_something_that_is_no_qmp(server: Server) -> None:
    def talk(client: Client) -> None:
        client.say({"hello": "world"})
        client.until_gone()

    server.serve(talk)
    with pytest.raises(QmpError, match="does not speak QMP"):
        qmp.connect(server.path, deadline=soon())


def test_events_before_the_first_answer_are_no_answer(server: Server) -> None:
    def talk(client: Client) -> None:
        client.say(GREETING)
        asked = client.hear()
        for _ in range(20):
            client.event("STOP")
        client.say({"return": {}, "id": asked["id"]})
        client.answer(**{"return": {"status": "running"}})

    server.serve(talk)
    with qmp.connect(server.path, deadline=soon()) as connected:
        assert connected.execute("query-status", deadline=soon()) == {"status": "running"}


def test_a_greeting_without_an_answer_is_not_waited_for_beyond_the_deadline(server: Server) -> None:
    def talk(client: Client) -> None:
        client.say(GREETING)
        client.until_gone()

    server.serve(talk)
    with pytest.raises(DeadlineError, match="for QEMU to answer on"):
        qmp.connect(server.path, deadline=Deadline.after(0.2))


def test_capabilities_that_are_refused(server: Server) -> None:
    def talk(client: Client) -> None:
        client.say(GREETING)
        client.answer(error={"class": "GenericError", "desc": "no"})
        client.until_gone()

    server.serve(talk)
    with pytest.raises(QmpError, match="QEMU refused qmp_capabilities: no"):
        qmp.connect(server.path, deadline=soon())


def test_file_descriptors_go_with_a_command(server: Server, tmp_path: Path) -> None:
    given: list[bytes] = []

    def talk(client: Client) -> None:
        client.greet()
        assert client.answer(**{"return": {"fdset-id": 7}})["execute"] == "add-fd"
        for fd in client.fds:
            given.append(os.pread(fd, 100, 0))
            os.close(fd)
        client.until_gone()

    (tmp_path / "file").write_bytes(b"its content")
    server.serve(talk)
    with (
        (tmp_path / "file").open("rb") as file,
        qmp.connect(server.path, deadline=soon()) as connection,
    ):
        assert connection.execute("add-fd", fds=[file.fileno()]) == {"fdset-id": 7}
        assert file.read() == b"its content"
    server.join()
    assert given == [b"its content"]


def test_hanging_up_instead_of_greeting_is_the_guests_death(server: Server, ended: ProcessRef) -> None:
    server.serve(lambda _client: None)
    with pytest.raises(GuestDiedError, match="before it greeted"):
        qmp.connect(server.path, process=ended, deadline=soon())


def test_hanging_up_during_a_command_is_the_guests_death(server: Server, ended: ProcessRef) -> None:
    def talk(client: Client) -> None:
        client.greet()
        client.hear()

    server.serve(talk)
    with qmp.connect(server.path, process=ended, deadline=soon()) as connection:
        with pytest.raises(GuestDiedError, match="QEMU ended during query-status"):
            connection.execute("query-status", deadline=soon())
        with pytest.raises(GuestDiedError):
            connection.execute("query-status", deadline=soon())


def test_hanging_up_without_dying_is_told_apart(
    server: Server, living: ProcessRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp, "_EXIT_SECONDS", 0.01)

    def talk(client: Client) -> None:
        client.greet()
        client.hear()

    server.serve(talk)
    with (
        qmp.connect(server.path, process=living, deadline=soon()) as connection,
        pytest.raises(QmpError, match=r"QEMU closed .* during stop"),
    ):
        connection.execute("stop", deadline=soon())


def test_an_answer_that_does_not_come_is_not_waited_for_beyond_the_deadline(server: Server) -> None:
    def talk(client: Client) -> None:
        client.greet()
        late = client.hear()
        later = client.hear()
        client.say({"id": late["id"], "return": "late"})
        client.say({"id": later["id"], "return": "in time"})
        client.until_gone()

    server.serve(talk)
    with qmp.connect(server.path, deadline=soon()) as connection:
        with pytest.raises(DeadlineError, match=r"waited 0\.1 s for QEMU to answer one"):
            connection.execute("one", deadline=Deadline.after(0.1))
        assert connection.execute("two", deadline=soon()) == "in time"


def test_events_are_heard_from_the_moment_of_listening_in_their_order(server: Server) -> None:
    def talk(client: Client) -> None:
        client.greet()
        client.event("RESUME")
        client.answer(**{"return": {}})
        client.answer(**{"return": {}})
        client.event("STOP", why="asked")
        client.event("RTC_CHANGE", offset=1)
        client.event("RESUME")
        client.until_gone()

    server.serve(talk)
    with qmp.connect(server.path, deadline=soon()) as connection:
        connection.execute("query-status", deadline=soon())
        with connection.listen("STOP", "RESUME") as heard:
            connection.execute("stop", deadline=soon())
            assert heard.next(deadline=soon()) == Event("STOP", {"why": "asked"}, 1700000000.25)
            assert heard.next(deadline=soon()).name == "RESUME"
            with pytest.raises(DeadlineError, match="for RESUME or STOP"):
                heard.next(deadline=Deadline.after(0.05))


def test_what_was_told_before_the_end_is_heard_before_the_end(server: Server, ended: ProcessRef) -> None:
    def talk(client: Client) -> None:
        client.greet()
        client.hear()
        client.event("SHUTDOWN", guest=True)

    server.serve(talk)
    with (
        qmp.connect(server.path, process=ended, deadline=soon()) as connection,
        connection.listen() as heard,
    ):
        with pytest.raises(GuestDiedError):
            connection.execute("quit", deadline=soon())
        assert heard.next(deadline=soon()).name == "SHUTDOWN"
        with pytest.raises(GuestDiedError, match="before an event"):
            heard.next(deadline=soon())


def test_a_closed_connection_says_so_and_leaves_no_thread(server: Server) -> None:
    def talk(client: Client) -> None:
        client.greet()
        client.until_gone()

    server.serve(talk)
    connection = qmp.connect(server.path, deadline=soon())
    connection.close()
    connection.close()
    with pytest.raises(StateError, match="is closed"):
        connection.execute("query-status", deadline=soon())
    assert "vmdebug-qmp" not in {thread.name for thread in threading.enumerate()}


def test_ctrl_c_gets_through(server: Server) -> None:
    def talk(client: Client) -> None:
        client.greet()
        client.hear()
        os.kill(os.getpid(), signal.SIGINT)
        client.until_gone()

    server.serve(talk)
    with qmp.connect(server.path, deadline=soon()) as connection, pytest.raises(KeyboardInterrupt):
        connection.execute("query-status", deadline=Deadline.after(60))


def test_qemu_that_greets_and_dies(server: Server, ended: ProcessRef) -> None:
    # A device that it cannot create ends QEMU after its greeting.
    server.serve(lambda client: client.say(GREETING))
    with pytest.raises(GuestDiedError, match="before it answered"):
        qmp.connect(server.path, process=ended, deadline=soon())


def test_an_event_is_chosen_and_others_are_dropped(server: Server) -> None:
    def talk(client: Client) -> None:
        client.greet()
        client.answer(**{"return": {}})
        for status in ("setup", "active", "completed"):
            client.event("MIGRATION", status=status)
        client.until_gone()

    server.serve(talk)
    with qmp.connect(server.path, deadline=soon()) as connection, connection.listen("MIGRATION") as heard:
        connection.execute("migrate")
        assert heard.next(lambda event: event.data["status"] == "completed").data == {"status": "completed"}
        with pytest.raises(DeadlineError, match="for MIGRATION"):
            heard.next(deadline=Deadline.after(0.05))


def test_the_connections_deadline_counts_where_a_call_has_none(server: Server) -> None:
    def talk(client: Client) -> None:
        client.greet()
        client.until_gone()

    server.serve(talk)
    with (
        qmp.connect(server.path, deadline=Deadline.after(0.5)) as connection,
        connection.listen() as heard,
        pytest.raises(DeadlineError, match=r"waited 0\.5 s for an event"),
    ):
        heard.next()
