"""Commands by the agent: the real program, on a pseudo-terminal in place of a UART, behind a socket."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures.exactcommands import COMMANDS
from tests.unit.serial_guest import SerialGuest
from vmdebug.channel import port
from vmdebug.channel.agent.frames import Decoder, Frame
from vmdebug.channel.agent.program import AGENT
from vmdebug.channel.agent.session import Session
from vmdebug.channel.agent.shell import LONGEST_LINE, AgentShell
from vmdebug.channel.port import PortAddress
from vmdebug.channel.shell import Output, Streams, command_line, input_of
from vmdebug.channel.watch import Watch
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, UsageError, VmError
from vmdebug.progress import silent

ARCH = os.uname().machine


def soon() -> Deadline:
    return Deadline.after(60)


def shell_of(guest: SerialGuest) -> AgentShell:
    address = PortAddress(guest.directory / "sock", guest.directory / "lock")
    return AgentShell([address], watch=lambda: Watch(guest.directory / "log"), silent=lambda: None)


def run(shell: AgentShell, line: str, stdin: bytes | int | None = None, seconds: float = 60) -> Output:
    deadline = Deadline.after(seconds)
    return shell.begin(line.encode(), Streams(stdin=stdin), deadline=deadline).result(deadline)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SerialGuest]:
    agent = AGENT.find(ARCH, tmp_path_factory.mktemp("agent"), report=silent, deadline=soon())
    with (
        tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as name,
        SerialGuest(Path(name), (str(agent), "/dev/tty"), {"PATH": os.environ["PATH"]}, raw=True) as opened,
    ):
        yield opened


@pytest.fixture
def shell(guest: SerialGuest) -> AgentShell:
    return shell_of(guest)


@pytest.mark.parametrize(
    ("line", "output"),
    [
        *COMMANDS,
        ("kill -9 $$", Output(b"", b"", 137)),
        ("kill -15 $$", Output(b"", b"", 143)),
        ("cat", Output(b"", b"", 0)),
        ("echo ü", Output("ü\n".encode(), b"", 0)),
    ],
)
def test_a_command_comes_back_exactly(shell: AgentShell, line: str, output: Output) -> None:
    assert run(shell, line) == output


def test_a_program_that_is_not_there(shell: AgentShell) -> None:
    done = run(shell, "/no/such/program")
    assert (done.status, done.stdout) == (127, b"")
    assert b"not found" in done.stderr


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=300) | st.text("~}^]\0\n", max_size=50).map(str.encode))
def test_any_input_comes_back_as_output(shell: AgentShell, data: bytes) -> None:
    assert run(shell, "cat", data) == Output(data, b"", 0)


def test_megabytes_go_in_and_come_out_exactly(shell: AgentShell) -> None:
    data = os.urandom(3 << 20)
    assert run(shell, "md5sum", data).stdout.split()[0].decode() == hashlib.md5(data).hexdigest()  # noqa: S324
    assert run(shell, "tee /dev/stderr", data) == Output(data, data, 0)


def test_a_descriptor_is_read_as_the_command_takes_it(shell: AgentShell) -> None:
    ours, theirs = os.pipe()
    deadline, heard = soon(), bytearray()
    step = threading.Event()

    def take(data: bytes) -> None:
        heard.extend(data)
        step.set()

    def write() -> None:
        os.write(theirs, b"one\n")
        step.wait(20)
        os.write(theirs, b"two\n")
        os.close(theirs)

    writer = threading.Thread(target=write)
    writer.start()
    running = shell.begin(b"cat", Streams(stdin=ours, stdout=take), deadline=deadline)
    assert running.result(deadline) == Output(b"", b"", 0)
    writer.join()
    os.close(ours)
    assert bytes(heard) == b"one\ntwo\n"


def test_a_command_that_reads_no_more_ends_the_input(shell: AgentShell) -> None:
    with open("/dev/zero", "rb") as endless:  # noqa: PTH123 - the descriptor counts
        assert run(shell, "head -c 3", endless.fileno()) == Output(b"\0\0\0", b"", 0)


def test_a_command_without_input_has_dev_null(shell: AgentShell) -> None:
    assert run(shell, "readlink /proc/self/fd/0").stdout == b"/dev/null\n"


def test_a_line_that_no_argument_can_hold(shell: AgentShell) -> None:
    line = "echo begin\n" + "".join(f": {number:050}\n" for number in range(4000)) + "echo end; exit 7"
    assert len(line) > 131072
    assert run(shell, line) == Output(b"begin\nend\n", b"", 7)


def test_commands_have_a_session_of_their_own_and_no_terminal(shell: AgentShell) -> None:
    done = run(shell, "read -r pid a b c group session tty d </proc/$$/stat; echo $pid $group $session $tty")
    pid, group, session, terminal = done.stdout.split()
    assert pid == group == session
    assert terminal == b"0"


def test_signals_are_as_a_program_expects_them(shell: AgentShell) -> None:
    status = run(shell, "cat /proc/self/status").stdout.decode()
    words = dict(line.split(":\t", 1) for line in status.splitlines())
    masks = {name: int(words[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")}
    # 32 and 33 are the C library's own: its posix_spawn leaves them ignored.
    assert [mask & ~(3 << 31) for mask in masks.values()] == [0, 0, 0]


def test_what_is_left_in_the_background_goes_on(shell: AgentShell, tmp_path: Path) -> None:
    gate, done = tmp_path / "gate", tmp_path / "done"
    os.mkfifo(gate)
    os.mkfifo(done)
    started = run(shell, f"(cat {gate}; echo more; echo yes >{done}) & echo started")
    assert started == Output(b"started\n", b"", 0)
    gate.write_bytes(b"")
    assert done.read_text() == "yes\n", "writing to nobody has not killed it"


def test_a_flood_from_the_background_does_not_keep_the_result(shell: AgentShell) -> None:
    done = run(shell, "yes & echo $!")
    flood = done.stdout.replace(b"y\n", b"").strip()
    assert run(shell, f"kill {flood.decode()}").status == 0


def test_a_command_that_takes_too_long_is_ended(shell: AgentShell, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(DeadlineError, match=r"waited 0.5 s for `echo \$\$ .*` to end in the guest"):
        run(shell, f"echo $$ >{pid}; trap '' TERM; sleep 300; sleep 300", seconds=0.5)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert run(shell, "echo next").stdout == b"next\n"


def test_a_command_that_is_cancelled_is_ended_gently_first(shell: AgentShell, tmp_path: Path) -> None:
    said, ready = tmp_path / "said", tmp_path / "ready"
    os.mkfifo(ready)
    line = f"trap 'echo term >{said}; exit' TERM; echo >{ready}; while :; do sleep 0.01; done"
    running = shell.begin(line.encode(), Streams(), deadline=soon())
    assert ready.read_bytes() == b"\n"
    running.cancel()
    assert said.read_text() == "term\n"
    with pytest.raises(StateError, match="was cancelled"):
        running.result(soon())


def test_a_command_that_nobody_waits_for_leaves_its_port_once_it_has_ended(
    shell: AgentShell, tmp_path: Path
) -> None:
    """The UART is the only port: the next command needs it."""
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    running = shell.begin(f"echo deserted; read line <{go_on}".encode(), Streams(), deadline=soon())
    assert not running.settle()
    go_on.write_text("\n")
    while not running.settle():
        assert wait_ready(running._session.fileno(), seconds=60)
    assert run(shell, "echo next").stdout == b"next\n"
    assert running.result(soon()) == Output(b"deserted\n", b"", 0)


def test_who_stops_listening_ends_the_command(shell: AgentShell, tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def broken(data: bytes) -> None:
        raise BrokenPipeError

    deadline = soon()
    running = shell.begin(f"echo $$ >{pid}; yes".encode(), Streams(stdout=broken), deadline=deadline)
    with pytest.raises(BrokenPipeError):
        running.result(deadline)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_the_next_client_ends_what_a_killed_one_left(guest: SerialGuest, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    running = shell_of(guest).begin(f"exec sleep 300 >{gate}".encode(), Streams(), deadline=soon())
    with gate.open("rb") as stream:
        running._session.close()  # as a process's end does
        running._watch.close()
        assert run(shell_of(guest), "echo hi").stdout == b"hi\n"
        assert stream.read() == b""  # the writer has gone


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.binary(max_size=60) | st.sampled_from([Frame(kind, 1, b"x").encode() for kind in (b"H", b"I", b"X")])
)
def test_whatever_a_client_left_unfinished_the_next_one_is_heard(guest: SerialGuest, leavings: bytes) -> None:
    address = PortAddress(guest.directory / "sock", guest.directory / "lock")
    opened = port.take([address], what="the port", deadline=soon())
    opened.send(leavings)
    opened.close()
    assert run(shell_of(guest), "echo hi") == Output(b"hi\n", b"", 0)


def test_another_clients_answers_are_not_taken_for_ones_own(guest: SerialGuest) -> None:
    address = PortAddress(guest.directory / "sock", guest.directory / "lock")
    session = Session(port.take([address], what="the port", deadline=soon()))
    try:
        session._accept(Frame(b"W", 0, bytes([1]) + bytes(16)))
        assert not session.greeted
        assert not session._accept(Frame(b"O", 1, b"another's"))
        session._accept(Frame(b"W", 0, bytes([1]) + session._nonce))
        assert session.greeted
    finally:
        session.close()


def test_an_agent_of_another_version_is_an_error(guest: SerialGuest) -> None:
    address = PortAddress(guest.directory / "sock", guest.directory / "lock")
    session = Session(port.take([address], what="the port", deadline=soon()))
    try:
        with pytest.raises(VmError, match="speaks version 9 of its protocol") as caught:
            session._accept(Frame(b"W", 0, bytes([9]) + session._nonce))
        assert "build the guest" in caught.value.hint
    finally:
        session.close()


def test_a_guest_that_goes_back_to_a_snapshot_loses_the_command(guest: SerialGuest) -> None:
    deadline = soon()
    running = shell_of(guest).begin(b"sleep 300", Streams(), deadline=deadline)
    # What an agent answers that has not heard all that was said: the number is another one.
    running._session._sent += 1
    with pytest.raises(VmError, match="result of `sleep 300` is lost: a snapshot was loaded"):
        running.result(deadline)
    assert run(shell_of(guest), "echo hi").stdout == b"hi\n"


def test_the_longest_command_and_one_that_is_longer(shell: AgentShell) -> None:
    frame = "echo hi #"
    assert run(shell, frame.ljust(LONGEST_LINE, "x")).stdout == b"hi\n"
    with pytest.raises(UsageError, match=f"the command has {LONGEST_LINE + 1} bytes") as caught:
        run(shell, frame.ljust(LONGEST_LINE + 1, "x"))
    assert "standard input" in caught.value.hint


def test_an_answer_that_is_told_twice_is_seen() -> None:
    decoder = Decoder()
    first, second = (Frame(b"O", number, b"x") for number in (1, 1))
    assert decoder.feed(first.encode() + second.encode()) == [first, second]


def test_the_end_of_qemu_is_an_error_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    agent = AGENT.find(ARCH, tmp_path_factory.mktemp("agent"), report=silent, deadline=soon())
    with (
        tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as name,
        SerialGuest(Path(name), (str(agent), "/dev/tty"), {"PATH": os.environ["PATH"]}, raw=True) as guest,
    ):
        running = shell_of(guest).begin(b"sleep 300", Streams(), deadline=soon())
        guest.leave()
        with pytest.raises(GuestDiedError, match="QEMU has ended"):
            running.result(soon())


def test_a_guest_that_never_answers_is_an_error_that_says_what_was_waited_for(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as name,
        SerialGuest(Path(name)) as guest,
        pytest.raises(DeadlineError, match=r"waited 0.3 s for the agent in the guest"),
    ):
        run(shell_of(guest), "true", seconds=0.3)


def test_a_panic_is_an_error_at_once() -> None:
    with tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as name, SerialGuest(Path(name)) as guest:
        guest.say(
            b"[    1.0] Kernel panic - not syncing: the end\r\n[    1.0] ---[ end Kernel panic - not\r\n"
        )
        with pytest.raises(GuestDiedError, match="Kernel panic - not syncing: the end"):
            run(shell_of(guest), "true")


def test_signal_numbers_are_the_hosts() -> None:
    assert (signal.SIGTERM, signal.SIGKILL) == (15, 9)


@pytest.mark.parametrize("command", [5, None, b"echo hi", ["a", 5], {"a"}])
def test_what_is_no_command_is_an_error_that_says_so(command: object) -> None:
    with pytest.raises(UsageError, match="is not a command"):
        command_line(command)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [b"~}x", bytearray(b"~}x"), memoryview(b"~}x"), "~}x"])
def test_input_is_text_or_anything_of_bytes(given: bytes) -> None:
    assert input_of(given) == b"~}x"


@pytest.mark.parametrize("given", [1.5, ["x"], Path("/etc/passwd")])
def test_other_input_is_an_error_at_once(given: object) -> None:
    with pytest.raises(UsageError, match="a command's input is text or bytes"):
        input_of(given)  # type: ignore[arg-type]


def test_an_agent_that_sleeps_through_the_request_is_woken_by_a_new_connection(tmp_path: Path) -> None:
    """The first connection is never answered; on the second one, the agent answers."""
    address = PortAddress(tmp_path / "sock", tmp_path / "lock")
    log = tmp_path / "log"
    log.touch()
    connections: list[socket.socket] = []

    def serve() -> None:
        for _ in range(2):
            connection, _address = listener.accept()
            connections.append(connection)
        decoder, asked = Decoder(), list[Frame]()
        while not asked:
            asked = decoder.feed(connections[1].recv(4096))
        connections[1].sendall(Frame(b"W", 0, asked[0].payload).encode())

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(address.socket))
        listener.listen()
        served = threading.Thread(target=serve, daemon=True)
        served.start()
        AgentShell([address], watch=lambda: Watch(log), silent=lambda: None).greet(soon())
        served.join(60)
    for connection in connections:
        connection.close()
    assert len(connections) == 2
