"""The search for a way into the guest: agents that answer, are silent, in use, or of another version."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmdebug import locks
from vmdebug.channel import finding, port
from vmdebug.channel.agent.frames import Decoder, Frame
from vmdebug.channel.agent.session import VERSION
from vmdebug.channel.finding import Search
from vmdebug.channel.found import Found
from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.port import PortAddress, Ways
from vmdebug.channel.watch import Watch
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError

PROMPT = b"\r\n~ # "


class Agent(threading.Thread):
    """An agent behind QEMU's socket.

    Args:
        address: Where it listens.
        version: The version of the protocol that it answers with; None: it never answers; 0: it hangs up.
        deaf: How many requests it does not answer at first.
    """

    def __init__(self, address: PortAddress, version: int | None, deaf: int = 0) -> None:
        super().__init__()
        self._version = version
        self._deaf = deaf
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address.socket))
        self._listener.listen()

    def run(self) -> None:
        # A client that leaves an answer unread resets the connection.
        with (
            contextlib.suppress(ConnectionError),
            self._listener,
            self._listener.accept()[0] as client,
        ):
            decoder = Decoder()
            while data := client.recv(4096):
                if self._version == 0:
                    return
                for frame in decoder.feed(data):
                    self._deaf -= frame.kind == b"H"
                    if frame.kind == b"H" and self._version is not None and self._deaf < 0:
                        client.sendall(Frame(b"W", 0, bytes([self._version]) + frame.payload[1:]).encode())


@pytest.fixture
def ways(tmp_path: Path) -> Ways:
    def address(name: str) -> PortAddress:
        return PortAddress(tmp_path / f"{name}.sock", tmp_path / f"{name}.lock")

    (tmp_path / "log").touch()
    return Ways(
        ports=[address("1"), address("2")],
        uart=address("uart"),
        guest_agent=address("guest-agent"),
        console=address("console"),
        log=tmp_path / "log",
        memory=tmp_path / "shell.json",
    )


@pytest.fixture
def agent() -> Iterator[Callable[[PortAddress, int | None], None]]:
    """Start an agent; each has to be connected to before the test ends."""
    agents = []

    def start(address: PortAddress, version: int | None = VERSION, deaf: int = 0) -> None:
        agents.append(Agent(address, version, deaf))
        agents[-1].start()

    yield start
    for each in agents:
        each.join(20)
        assert not each.is_alive()


def find(ways: Ways, *, seconds: float = 60, patience: float = 0.0, running: bool = True) -> Found:
    def check() -> None:
        if not running:
            raise StateError("the guest is paused")

    watch = Watch(ways.log)
    try:
        with Search(ways, watch, patience) as search:
            return search.result(Deadline.after(seconds), check)
    finally:
        watch.close()


def test_the_agent_is_the_best_way(ways: Ways, agent: Callable[..., None]) -> None:
    agent(ways.ports[0])
    agent(ways.uart)
    assert find(ways) == Found("agent")


def test_an_agent_on_the_uart_is_used_when_none_answers_on_the_ports(
    ways: Ways, agent: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "BETTER_SECONDS", 0.05)
    agent(ways.ports[0], None)
    agent(ways.uart)
    assert find(ways) == Found("agent-uart", "the guest has no virtio console")


def test_ports_that_are_all_in_use_are_those_that_another_client_has_found(
    ways: Ways, agent: Callable[..., None]
) -> None:
    Found("agent").write(ways.memory)
    for each in ways.ports:
        agent(each, None)
    with contextlib.ExitStack() as held:
        for each in ways.ports:
            held.callback(port.take([each], what="a port", deadline=Deadline.after(20)).close)
        assert find(ways) == Found("agent")


def test_an_agent_that_another_client_has_heard_is_taken_rather_than_the_console(
    ways: Ways, agent: Callable[..., None]
) -> None:
    """As while a guest boots on a busy machine, when many commands come at once."""
    Found("agent").write(ways.memory)
    ways.log.write_bytes(PROMPT)
    agent(ways.ports[0], None)
    assert find(ways) == Found("agent")


def test_an_agent_has_more_time_while_another_client_uses_the_console(
    ways: Ways, agent: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "IN_USE", 1000)
    ways.log.write_bytes(PROMPT)
    ways.console.lock.write_text(f"{os.getpid()}\n")
    agent(ways.ports[0], deaf=3)
    with locks.held(ways.console.lock, what="the console", deadline=Deadline.after(20)):
        assert find(ways, patience=0.1) == Found("agent")


def test_a_way_that_has_answered_is_taken_though_a_better_one_may_come_and_the_console_shows_a_prompt(
    ways: Ways, agent: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "BETTER_SECONDS", 2.0)
    ways.log.write_bytes(PROMPT)
    agent(ways.ports[0], None)
    agent(ways.uart)
    assert find(ways, patience=1.0) == Found("agent-uart", "the guest has no virtio console")


def test_a_way_that_another_client_only_asks_is_not_taken_for_one_that_answers(
    ways: Ways, agent: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a guest boots, when many commands come at once."""
    monkeypatch.setattr(finding, "BETTER_SECONDS", 0.0)
    agent(ways.uart, None)
    with contextlib.closing(port.take([ways.uart], what="the UART", deadline=Deadline.after(20))):
        with pytest.raises(DeadlineError):
            find(ways, seconds=0.3)
        agent(ways.ports[0])
        assert find(ways) == Found("agent")


def test_a_way_in_use_is_asked_once_it_is_free(
    ways: Ways, agent: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "BETTER_SECONDS", 0.0)
    agent(ways.uart, None)
    held = port.take([ways.uart], what="the UART", deadline=Deadline.after(20))

    def leave() -> None:
        ways.uart.socket.unlink()
        agent(ways.uart)
        held.close()

    later = threading.Timer(0.2, leave)
    later.start()
    try:
        assert find(ways).kind == "agent-uart"
    finally:
        later.join()


def test_without_ports_a_prompt_on_the_console_is_used_at_once(ways: Ways) -> None:
    ways.log.write_bytes(PROMPT)
    assert find(ways, patience=600) == Found("serial", "no agent answers in the guest")


def test_a_silent_agent_is_given_up_when_the_console_has_shown_a_prompt_for_long(
    ways: Ways, agent: Callable[..., None]
) -> None:
    ways.log.write_bytes(PROMPT)
    agent(ways.ports[0], None)
    assert find(ways, patience=0.05).kind == "serial"


def test_an_agent_of_another_version_leaves_the_serial_line_and_the_reason_says_so(
    ways: Ways, agent: Callable[..., None]
) -> None:
    ways.log.write_bytes(PROMPT)
    agent(ways.ports[0], VERSION + 1)
    found = find(ways, patience=600)
    assert found.kind == "serial"
    assert found.reason == (
        f"the agent in the guest speaks version {VERSION + 1} of its protocol, and vmdebug version {VERSION}"
    )


def test_an_agent_of_another_version_leaves_the_next_way(ways: Ways, agent: Callable[..., None]) -> None:
    agent(ways.ports[0], VERSION + 1)
    agent(ways.uart)
    found = find(ways)
    assert found.kind == "agent-uart"


def test_a_guest_without_any_way_is_an_error_with_a_hint(ways: Ways) -> None:
    with pytest.raises(DeadlineError, match=r"waited 0\.3 s for a shell in the guest") as caught:
        find(ways, seconds=0.3)
    assert "stopped by a debugger" in caught.value.hint


def test_a_guest_that_does_not_run_is_an_error(ways: Ways) -> None:
    with pytest.raises(StateError, match="the guest is paused"):
        find(ways, running=False)


def test_the_end_of_qemu_is_an_error(ways: Ways, agent: Callable[..., None]) -> None:
    agent(ways.ports[0], 0)
    with pytest.raises(GuestDiedError, match="QEMU has ended"):
        find(ways)


def test_what_was_found_is_read_again(tmp_path: Path) -> None:
    found = Found("serial", "no agent answers in the guest")
    assert Found.read(tmp_path / "shell.json") is None
    found.write(tmp_path / "shell.json")
    assert Found.read(tmp_path / "shell.json") == found
    (tmp_path / "shell.json").write_text('{"kind": "telepathy"}')
    assert Found.read(tmp_path / "shell.json") is None
    found.write(tmp_path / "gone" / "shell.json")
    assert not (tmp_path / "gone").exists()


def test_a_way_is_described_with_the_reason() -> None:
    assert Found("agent").describe() == "vmdebug's agent, on virtio-serial ports"
    assert Found("serial", "no agent answers in the guest").describe() == (
        "the shell on the serial line, one command at a time: no agent answers in the guest"
    )


class Tracing:
    """A debugger that runs the guest, and stops it for a moment at each hit."""

    def __init__(self, *, running: bool) -> None:
        self._running = running

    def fileno(self) -> int:
        return -1

    def check_stop(self) -> None: ...

    def runs(self) -> bool:
        return self._running


@pytest.mark.parametrize(
    ("running", "error", "seconds"), [(True, DeadlineError, 1.0), (False, StateError, 30.0)]
)
def test_a_guest_that_is_paused_at_a_hit_of_a_trace_runs(
    ways: Ways, running: bool, error: type[Exception], seconds: float
) -> None:
    def paused() -> None:
        raise StateError("exec needs a running guest, and vm is paused")

    shell = GuestShell(ways, check=paused)
    shell.debugger = Tracing(running=running)
    with pytest.raises(error):
        shell.wait(Deadline.after(seconds))
