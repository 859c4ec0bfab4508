"""Commands in a real guest by the ways into it other than the console."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fixtures import channelguest
from tests.fixtures.accel import SECONDS
from vmdebug import process
from vmdebug.channel import port
from vmdebug.channel.found import Found
from vmdebug.channel.port import PortAddress
from vmdebug.channel.shell import ExecResult
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, VmError
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession
from vmdebug.vm import Vm

MIB = 1 << 20


def soon() -> Deadline:
    return Deadline.after(SECONDS)


@pytest.fixture(scope="module")
def shared(builtin: LaunchSpec) -> Iterator[Vm]:
    """One booted guest for the tests that leave it as it was."""
    with channelguest.of_module(builtin, "channel") as vm:
        yield vm


@pytest.fixture
def own(builtin: LaunchSpec) -> Iterator[Vm]:
    """A booting guest that the test may change."""
    with channelguest.started(builtin, "own") as vm:
        yield vm


def in_use(address: PortAddress) -> bool:
    opened = port.try_take(address)
    if opened is not None:
        opened.close()
    return opened is None


def cli(vm: Vm, *words: str) -> list[str]:
    return [sys.executable, "-m", "vmdebug.cli", "exec", vm.name, *words]


def environment(vm: Vm) -> dict[str, str]:
    return {**os.environ, "XDG_RUNTIME_DIR": str(vm.rundir.path.parent.parent)}


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("true", ExecResult("", "", 0)),
        ("echo out; echo err >&2; exit 4", ExecResult("out\n", "err\n", 4)),
        (r"printf '\000\001 no newline'", ExecResult("\0\1 no newline", "", 0)),
        (["printf", "%s|", "a b", "it's", "$HOME", "\n", "ü"], ExecResult("a b|it's|$HOME|\n|ü|", "", 0)),
        ("kill -9 $$", ExecResult("", "", 137)),
        ("cat", ExecResult("", "", 0)),
        ("pwd; umask; echo $HOME", ExecResult("/root\n0022\n/root\n", "", 0)),
    ],
)
def test_a_command_comes_back_exactly(shared: Vm, command: str | list[str], result: ExecResult) -> None:
    assert shared.exec(command) == result
    assert shared.shell.found == Found("agent")


def test_eight_mebibytes_go_in_and_come_out_exactly(shared: Vm) -> None:
    data = os.urandom(8 * MIB)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert (
        shared.exec("cat >/run/data; md5sum </run/data", stdin=data, timeout=240).stdout.split()[0] == digest
    )
    came = shared.exec("cat /run/data; rm /run/data", timeout=240).stdout.encode(errors="surrogateescape")
    assert came == data


def test_output_is_exact_through_a_flood_of_kernel_messages(shared: Vm) -> None:
    shared.exec("echo on >/proc/sys/kernel/printk_devkmsg")
    flood = shared.exec("while :; do echo flood >/dev/kmsg; done >/dev/null 2>&1 & echo $!").stdout
    try:
        data = os.urandom(100_000)
        assert shared.exec("cat", stdin=data).stdout.encode(errors="surrogateescape") == data
    finally:
        shared.exec(f"kill -9 {flood}; echo ratelimit >/proc/sys/kernel/printk_devkmsg")


def test_twenty_commands_run_at_once_while_a_person_has_the_console(shared: Vm) -> None:
    gate = "until [ -e /run/gate ]; do sleep 0.1; done"
    with shared.console() as console, ThreadPoolExecutor(21) as pool:
        waiting = [
            pool.submit(shared.exec, f"echo {n}; touch /run/n{n}; {gate}", timeout=SECONDS) for n in range(20)
        ]
        every = shared.exec(
            "until [ $(ls /run/n* | wc -l) = 20 ]; do sleep 0.1; done 2>/dev/null", timeout=SECONDS
        )
        assert every.status == 0, "all twenty run"
        shared.exec("touch /run/gate")
        assert [each.result().stdout for each in waiting] == [f"{n}\n" for n in range(20)]
        shared.exec("rm /run/gate /run/n*")
        console.sendline("echo the conso''le")
        console.expect("the console", timeout=SECONDS)


def test_a_command_waits_for_a_port_and_says_so(shared: Vm) -> None:
    ports = shared.rundir.shell_ports
    with ThreadPoolExecutor(len(ports)) as pool:
        hold = [
            pool.submit(shared.exec, "until [ -e /run/go ]; do sleep 0.1; done", timeout=SECONDS)
            for _ in ports
        ]
        for pause in soon().pauses("every port to be in use"):
            if all(map(in_use, ports)):
                break
            time.sleep(pause)
        with pytest.raises(DeadlineError, match="one of the 24 ports into the guest"):
            shared.exec("true", timeout=0.5)
        # One more is needed to let them go: the console is a way too.
        with shared.console() as console:
            console.sendline("touch /run/go")
            assert [each.result().status for each in hold] == [0] * len(ports)
    shared.exec("rm /run/go")


def test_the_command_line_streams_both_ways(shared: Vm) -> None:
    words = cli(shared, "--", "while read -r line; do echo got $line; done; exit 5")
    with process.spawn(
        words, env=environment(shared), stdin=process.PIPE, stdout=process.PIPE, stderr=process.PIPE
    ) as child:
        assert child.stdin
        assert child.stdout
        for word in (b"one", b"two"):
            child.stdin.write(word + b"\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"got " + word + b"\n"
        child.stdin.close()
        assert child.wait(60) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_command_line_ends_its_command_ends_too(shared: Vm, number: signal.Signals) -> None:
    line = "echo $$; sleep 1357"
    with process.spawn(cli(shared, "-n", "--", line), env=environment(shared), stdout=process.PIPE) as child:
        assert child.stdout
        pid = child.stdout.readline().decode().strip()
        child.send_signal(number)
        assert child.wait(60) == (130 if number is signal.SIGINT else -number)
    gone = f"n=0; while [ -e /proc/{pid} ]; do sleep 0.1; n=$((n+1)); [ $n -lt 100 ] || exit 1; done"
    assert shared.exec(gone).status == 0
    assert shared.exec("ps | grep -c '[s]leep 1357'").stdout == "0\n"


def test_a_command_that_takes_too_long_leaves_nothing_in_the_guest(shared: Vm) -> None:
    with pytest.raises(DeadlineError, match="`sleep 300` to end in the guest"):
        shared.exec("sleep 300", timeout=1)
    assert shared.exec("ps | grep -c '[s]leep 300'").stdout == "0\n"


STOPPING = """
import sys, vmdebug
with vmdebug.attach(sys.argv[1]) as session:
    assert session.gdb.stopped
    print("stopped", flush=True)
    sys.stdin.readline()
    session.gdb.cont(wait=False)
    print("resumed", flush=True)
    sys.stdin.read()
"""


def test_a_command_waits_for_a_guest_that_a_program_has_stopped(shared: Vm) -> None:
    script = [sys.executable, "-c", STOPPING, shared.name]
    env = environment(shared)
    with process.spawn(script, env=env, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == b"stopped\n"
        assert shared.status() == "paused"
        with pytest.raises(DeadlineError):
            shared.exec("true", timeout=1)
        with process.spawn(cli(shared, "-n", "--", "echo hi"), env=env, stdout=process.PIPE) as waiting:
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert waiting.stdout
            assert waiting.stdout.read() == b"hi\n"
            assert waiting.wait(60) == 0
        assert child.stdout.readline() == b"resumed\n"


def test_a_guest_that_stands_still_is_an_error_and_works_again_when_it_goes_on(shared: Vm) -> None:
    shared.exec("true")
    shared.pause()
    with pytest.raises(StateError, match="exec needs a running guest, and channel is paused"):
        shared.exec("true", timeout=30)
    shared.resume()
    assert shared.exec("echo hi").stdout == "hi\n"


def test_a_panic_is_an_error_at_once(own: Vm) -> None:
    own.exec("true", timeout=SECONDS)
    with pytest.raises(GuestDiedError, match="sysrq triggered crash") as caught:
        own.exec("echo c >/proc/sysrq-trigger", timeout=SECONDS)
    assert "Call Trace" in caught.value.detail


def test_a_guest_that_powers_off_is_an_error_at_once(own: Vm) -> None:
    own.exec("true", timeout=SECONDS)
    with pytest.raises(GuestDiedError):
        own.exec("poweroff -f; sleep 300", timeout=SECONDS)


def test_a_snapshot_that_is_loaded_in_the_middle_of_a_command(own: Vm) -> None:
    own.exec("true", timeout=SECONDS)
    own.snapshot("before")
    session = DebugSession(own, owned=False)
    job = session.exec("sleep 300", wait=False)
    session.restore("before")
    with pytest.raises(VmError, match="result of `sleep 300` is lost: a snapshot was loaded"):
        job.result(timeout=SECONDS)
    assert own.exec("ps | grep -c '[s]leep 300'").stdout == "0\n"
    session.close()


def test_a_snapshot_that_was_taken_in_the_middle_of_a_command(own: Vm) -> None:
    own.exec("true", timeout=SECONDS)
    job = DebugSession(own, owned=False).exec("echo begin; sleep 2; echo end", wait=False)
    own.exec("until pidof sleep; do :; done")
    own.snapshot("midway")
    assert job.result(timeout=SECONDS).stdout == "begin\nend\n"
    own.restore("midway")
    # Whoever comes next ends what the snapshot holds.
    assert own.exec("echo next").stdout == "next\n"
    assert own.exec("ps | grep -c '[s]leep 2$'").stdout == "0\n"


def test_a_kernel_without_a_virtio_console_has_a_second_uart(builtin: LaunchSpec) -> None:
    with channelguest.started(builtin, "uart", virtio_serial=False) as vm:
        data = os.urandom(50_000)
        assert vm.exec("cat", stdin=data, timeout=SECONDS).stdout.encode(errors="surrogateescape") == data
        assert vm.shell.found == Found("agent-uart", "the guest has no virtio console")
        with vm.console():
            assert vm.exec("echo out; echo err >&2; exit 4") == ExecResult("out\n", "err\n", 4)
        with pytest.raises(DeadlineError):
            vm.exec("sleep 300", timeout=1)
        assert vm.exec("ps | grep -c '[s]leep 300'").stdout == "0\n"


def test_where_nothing_answers_the_serial_line_does(builtin: LaunchSpec) -> None:
    with channelguest.started(builtin, "serial", virtio_serial=False, uarts=()) as vm:
        assert vm.exec("cat; exit 3", stdin=b"\0\xff~", timeout=SECONDS).status == 3
        assert vm.shell.found == Found("serial", "no agent answers in the guest")
        with vm.console(), pytest.raises(StateError, match="the console of serial is in use"):
            vm.exec("true")


def test_a_session_goes_on_over_its_own_console_where_that_is_the_only_way(builtin: LaunchSpec) -> None:
    with (
        channelguest.started(builtin, "line", virtio_serial=False, uarts=()) as vm,
        DebugSession(vm, owned=False) as session,
    ):
        session.console.wait_ready(timeout=SECONDS)
        assert session.exec("echo hi").stdout == "hi\n"
        assert vm.exec("echo ho").stdout == "ho\n"
