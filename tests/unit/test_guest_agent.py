"""Commands by qemu-guest-agent: the real program, on a socket of this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fixtures.exactcommands import COMMANDS
from vmdebug import process
from vmdebug.channel.guest_agent import GuestAgentShell
from vmdebug.channel.port import PortAddress
from vmdebug.channel.shell import Output, Streams
from vmdebug.channel.watch import Watch
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.fixture(scope="module")
def shell() -> Iterator[GuestAgentShell]:
    program = process.find("qemu-ga", package="qemu-guest-agent")
    with tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as name:
        directory = Path(name)
        (directory / "log").touch()
        address = PortAddress(directory / "qga.sock", directory / "qga.lock")
        argv = (program, "-m", "unix-listen", "-p", address.socket, "-t", directory, "-f", directory / "pid")
        with process.spawn(argv):
            for pause in soon().pauses("qemu-ga to listen"):
                if address.socket.exists():
                    break
                time.sleep(pause)
            yield GuestAgentShell(address, watch=lambda: Watch(directory / "log"))


def run(shell: GuestAgentShell, line: str, stdin: bytes | int | None = None, seconds: float = 60) -> Output:
    deadline = Deadline.after(seconds)
    return shell.begin(line.encode(), Streams(stdin=stdin), deadline=deadline).result(deadline)


@pytest.mark.parametrize(
    ("line", "output"),
    [
        *COMMANDS,
        ("kill -9 $$", Output(b"", b"", 137)),
    ],
)
def test_a_command_comes_back_exactly(shell: GuestAgentShell, line: str, output: Output) -> None:
    assert run(shell, line) == output


def test_input_goes_in_exactly(shell: GuestAgentShell, tmp_path: Path) -> None:
    data = os.urandom(200_000)
    assert run(shell, "cat", data).stdout == data
    (tmp_path / "data").write_bytes(data)
    with (tmp_path / "data").open("rb") as stream:
        assert run(shell, "cat", stream.fileno()).stdout == data


def test_output_is_handed_over_once_the_command_has_ended(shell: GuestAgentShell) -> None:
    heard: list[bytes] = []
    deadline = soon()
    running = shell.begin(b"echo hi", Streams(stdout=heard.append), deadline=deadline)
    assert running.result(deadline) == Output(b"", b"", 0)
    assert heard == [b"hi\n"]


def test_several_run_at_once(shell: GuestAgentShell, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(5) as pool:
        wait = f"until [ -e {gate} ]; do sleep 0.05; done; echo"
        hold = [pool.submit(run, shell, f"{wait} {number}") for number in range(4)]
        assert run(shell, "echo first").stdout == b"first\n"
        gate.touch()
        assert [each.result().stdout for each in hold] == [b"%d\n" % number for number in range(4)]


def test_a_command_that_takes_too_long_is_ended(shell: GuestAgentShell, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(DeadlineError, match=r"to end in the guest"):
        run(shell, f"echo $$ >{pid}; exec sleep 300", seconds=1)
    group = pid.read_text().strip()
    for pause in soon().pauses("the command to end"):
        if not Path(f"/proc/{group}").exists():
            break
        time.sleep(pause)
