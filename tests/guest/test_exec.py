"""`exec` and the console with a real kernel, whose messages appear in between."""

from __future__ import annotations

import hashlib
import signal
import tempfile
from collections.abc import Iterator

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from tests.fixtures.exactcommands import COMMANDS
from vmdebug.channel.serial.console import Console
from vmdebug.channel.shell import Output
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, VmError
from vmdebug.guest import LaunchSpec
from vmdebug.vm import Vm, launch


def soon() -> Deadline:
    return Deadline.after(SECONDS)


def run(console: Console, command: str | list[str]) -> Output:
    return console.line.shell.execute(command, deadline=soon())


@pytest.fixture(scope="module")
def shared(builtin: LaunchSpec) -> Iterator[Vm]:
    """A booted guest for the tests that do not change it."""
    spec = msgspec.structs.replace(builtin, name="exec")
    with (
        tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as runtime,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        vm = launch(spec, bound=True, timeout=SECONDS)
        patch.undo()
        try:
            yield vm
        finally:
            vm.stop(force=True)


@pytest.fixture
def console(shared: Vm) -> Iterator[Console]:
    with shared.console() as opened:
        opened.wait_ready(timeout=SECONDS)
        yield opened
        assert run(opened, "ls -A /tmp /dev/shm").stdout.count(b"vmdebug-") == 2, (
            "only the listing's own files"
        )


@pytest.fixture
def own(builtin: LaunchSpec) -> Iterator[Vm]:
    """A booting guest that the test may kill."""
    vm = launch(msgspec.structs.replace(builtin, name="own"), bound=True, timeout=SECONDS)
    yield vm
    vm.stop(force=True)


@pytest.mark.parametrize(
    ("command", "result"),
    [
        *COMMANDS,
        (
            ["printf", "%s|", "a b", "it's", "$HOME", "\n", "ü"],
            Output("a b|it's|$HOME|\n|ü|".encode(), b"", 0),
        ),
        ("kill -9 $$", Output(b"", b"", 137)),
        ("cat", Output(b"", b"", 0)),
    ],
)
def test_a_command_comes_back_exactly(console: Console, command: str | list[str], result: Output) -> None:
    assert run(console, command) == result


def test_a_megabyte_comes_back_exactly(console: Console) -> None:
    run(console, "head -c 1000000 /proc/kallsyms >/run/text")
    text = run(console, "cat /run/text").stdout
    assert len(text) == 1_000_000
    assert hashlib.md5(text, usedforsecurity=False).hexdigest() == digest(console, "/run/text")


def test_output_comes_back_exactly_through_a_flood_of_kernel_messages(shared: Vm, console: Console) -> None:
    console.line.take()
    # Otherwise the kernel limits a program to ten messages in five seconds.
    run(console, "echo on >/proc/sys/kernel/printk_devkmsg")
    run(console, "head -c 100000 /dev/urandom >/run/random")
    wanted = digest(console, "/run/random")
    before = messages(shared)
    flood = run(console, "while :; do echo 'flood of messages' >/dev/kmsg; done >/dev/null 2>&1 & echo $!")
    random = run(console, "cat /run/random").stdout
    run(console, f"kill -9 {flood.stdout.decode()}; echo ratelimit >/proc/sys/kernel/printk_devkmsg")
    assert hashlib.md5(random, usedforsecurity=False).hexdigest() == wanted
    assert messages(shared) - before > 100
    console.expect("flood of messages", timeout=SECONDS)


def digest(console: Console, file: str) -> str:
    return run(console, ["md5sum", file]).stdout.split()[0].decode()


def messages(vm: Vm) -> int:
    return vm.rundir.console_log.read_bytes().count(b"] flood of messages")


def test_kernel_messages_of_the_command_are_left_for_expect(console: Console) -> None:
    assert run(console, "echo 'hello from the kernel' >/dev/kmsg").stdout == b""
    assert console.expect("hello from the kernel", timeout=SECONDS)


def test_a_command_that_hangs_is_ended_and_the_console_goes_on(console: Console) -> None:
    with pytest.raises(DeadlineError, match="`sleep 300` to end in the guest"):
        console.line.shell.execute("sleep 300", deadline=Deadline.after(1))
    assert not console.line.shell.interrupted
    assert b"sleep 300" not in run(console, "ps").stdout


def test_a_command_that_reads_the_console_itself_is_ended(console: Console) -> None:
    with pytest.raises(DeadlineError):
        console.line.shell.execute("cat /dev/ttyS0", deadline=Deadline.after(1))
    assert not console.line.shell.interrupted
    assert run(console, "cat </dev/tty").status != 0


def test_a_command_that_kills_the_console_s_shell_is_an_error_and_the_next_shell_is_found(
    console: Console,
) -> None:
    # The sixth field is the session, whose leader is the shell; see proc(5).
    with pytest.raises(VmError, match="killed the shell"):
        run(console, "read -r a b c d e session f </proc/$PPID/stat; kill -9 $session; exec sleep 300")
    run(console, "killall sleep; true")
    console.line.shell.ready = False
    console.wait_ready(timeout=SECONDS)
    assert run(console, "echo hi").stdout == b"hi\n"


def test_the_shell_of_a_person_still_echoes(console: Console) -> None:
    run(console, "true")
    console.sendline("stty -a")
    assert "-echo " not in console.read_until("echok", timeout=SECONDS)


def test_a_guest_that_is_stopped_is_an_error_and_works_again_when_it_goes_on(
    shared: Vm, console: Console
) -> None:
    shared.qmp("stop")
    with pytest.raises(DeadlineError, match="to accept a command"):
        console.line.shell.execute("true", deadline=Deadline.after(0.5))
    shared.qmp("cont")
    assert run(console, "echo hi").stdout == b"hi\n"


def test_a_panic_is_an_error_at_once(own: Vm) -> None:
    with own.console() as console:
        console.wait_ready(timeout=SECONDS)
        with pytest.raises(GuestDiedError, match="sysrq triggered crash") as caught:
            run(console, "echo c >/proc/sysrq-trigger")
        assert "Call Trace" in caught.value.detail


def test_a_guest_that_powers_off_is_an_error_at_once(own: Vm) -> None:
    with own.console() as console:
        console.wait_ready(timeout=SECONDS)
        with pytest.raises(GuestDiedError):
            run(console, "poweroff -f; sleep 300")


def test_the_end_of_qemu_is_an_error_at_once(own: Vm) -> None:
    with own.console() as console:
        console.wait_ready(timeout=SECONDS)
        console.sendline("sleep 300")
        own.state.qemu.signal(signal.SIGKILL)
        with pytest.raises(GuestDiedError, match="QEMU was killed by SIGKILL"):
            console.expect("never said", timeout=SECONDS)
