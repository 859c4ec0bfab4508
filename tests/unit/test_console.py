from __future__ import annotations

import os

import pytest

from tests.unit.serial_guest import KINDS, line_guest, shell_guest
from vmdebug.channel.log import death
from vmdebug.channel.serial import ready
from vmdebug.channel.serial.ready import Look
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, VmError

PANIC = b"[    9.000000] Kernel panic - not syncing: Attempted to kill init!\r\n"
TRACE = b"[    9.000001] Call Trace:\r\n[    9.000002]  panic+0x1/0x2\r\n"
END = b"[    9.000003] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\r\n"


def soon() -> Deadline:
    return Deadline.after(30)


def test_what_the_guest_says_is_expected_and_used_up() -> None:
    with line_guest() as guest, guest.console() as console:
        guest.say(b"one 1\r\ntwo 2\r\n")
        assert console.expect(r"one (\d)", timeout=30).group(1) == "1"
        assert console.read_until(r"two", timeout=30) == "\r\ntwo"
        assert console.expect(r" (\d)\r\n", timeout=30).group(1) == "2"


def test_bytes_that_are_no_text_are_kept() -> None:
    with line_guest() as guest, guest.console() as console:
        guest.say(b"\xc3")
        guest.say(b"\xbc\xff!")
        assert console.read_until("!", timeout=30) == "ü\udcff!"


def test_a_line_is_typed() -> None:
    with line_guest() as guest, guest.console() as console:
        console.sendline("äöü \udcff")
        line = "äöü ".encode() + b"\xff\n"
        guest.wait_typed(line)
        assert guest.typed.endswith(line)


def test_what_was_taken_can_be_put_back() -> None:
    with line_guest() as guest, guest.console() as console:
        guest.say("one ü two".encode())
        console.expect("one", timeout=30)
        rest = console.line.take()
        assert rest == " ü two".encode()
        console.line.put_back(rest)
        guest.say(b" three")
        assert console.read_until("three", timeout=30) == " ü two three"


def test_a_second_client_is_told_who_the_first_one_is() -> None:
    with line_guest() as guest, guest.console():
        with pytest.raises(StateError, match=f"in use by process {os.getpid()}") as caught, guest.console():
            pass
        assert "Ctrl-]" in caught.value.hint


def test_a_client_that_has_gone_makes_room() -> None:
    with line_guest() as guest:
        with guest.console():
            pass
        assert (guest.directory / "lock").read_bytes() == b""
        with guest.console() as console:
            assert not console.line.shell.interrupted


def test_a_console_that_is_not_open_says_so() -> None:
    with line_guest() as guest, pytest.raises(StateError, match="not open"):
        guest.console().sendline("hello")


def test_a_silent_guest_that_qemu_knows_to_be_dead_is_not_waited_for() -> None:
    causes = iter(["", "the kernel panicked"])
    with line_guest() as guest, guest.console(cause=lambda: next(causes)) as console:
        with pytest.raises(GuestDiedError, match=r"waited for 'hello' on .*: the kernel panicked"):
            console.expect("hello", timeout=1000)
        assert list(causes) == []


def test_no_word_is_an_error_with_the_end_of_the_log() -> None:
    with line_guest(b"the last line\r\n") as guest, guest.console() as console:
        with pytest.raises(DeadlineError, match=r"waited 0.1 s for 'hello' on the guest's console") as caught:
            console.expect("hello", timeout=0.1)
        assert "the last line" in caught.value.detail


def test_a_panic_is_an_error_at_once_with_its_trace() -> None:
    with line_guest(b"before\r\n") as guest, guest.console() as console:
        guest.say(PANIC + TRACE + END)
        with pytest.raises(GuestDiedError, match="Attempted to kill init!") as caught:
            console.expect("never said", timeout=30)
        assert "before" in caught.value.detail
        assert "panic+0x1/0x2" in caught.value.detail


def test_what_was_expected_wins_over_the_death_after_it() -> None:
    with line_guest() as guest, guest.console() as console:
        guest.say(b"hello\r\n" + PANIC + END)
        console.expect("hello", timeout=30)
        console.expect("Kernel panic", timeout=30)
        with pytest.raises(GuestDiedError):
            console.expect("more", timeout=30)


def test_a_panic_before_the_connection_is_an_error_at_once() -> None:
    with line_guest(PANIC + END) as guest, guest.console() as console:
        with pytest.raises(GuestDiedError):
            console.expect("hello", timeout=30)
        with pytest.raises(GuestDiedError):
            console.wait_ready(timeout=30)


def test_the_end_of_qemu_is_an_error_at_once() -> None:
    with line_guest(b"[    2.000000] reboot: Power down\r\n") as guest, guest.console() as console:
        guest.leave()
        with pytest.raises(GuestDiedError, match="powered off"):
            console.expect("hello", timeout=30)


def test_a_console_without_qemu_is_an_error() -> None:
    with line_guest() as guest:
        (guest.directory / "sock").unlink()
        with pytest.raises(GuestDiedError, match="QEMU has ended"), guest.console():
            pass


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (PANIC, "Kernel panic - not syncing: Attempted to kill init!"),
        (b"~ # " + PANIC, "Kernel panic - not syncing: Attempted to kill init!"),
        (b"[    1.0][    T1] Kernel panic - not syncing: x\r\n", "Kernel panic - not syncing: x"),
        (b"Kernel panic - not syncing: x\r\n", "Kernel panic - not syncing: x"),
        (b"[    1.0] reboot: System halted\r\n", "the guest halted"),
        (b"[    1.0] reboot: Power down\r\n", "the guest powered off"),
        (b"[    1.0] reboot: Restarting system\r\n", "the guest restarted"),
        (b"echo 'Kernel panic - not syncing: x'\r\n", ""),
        (b"[    1.0] Kernel panic - not syncing", ""),
    ],
)
def test_causes_of_death(text: bytes, cause: str) -> None:
    assert death.cause(text) == cause


def test_a_death_is_seen_across_pieces() -> None:
    watch = death.Watch()
    causes = [watch.feed(PANIC[at : at + 1]) for at in range(len(PANIC))]
    assert [bool(cause) for cause in causes].count(True) >= 1
    assert causes[-3] == ""


def test_a_kernel_started_after_a_panic_lives() -> None:
    log = PANIC + END + b"[    0.000000] Linux version 6.1.0\r\n"
    assert death.cause_in_log(log) == ""
    assert death.cause_in_log(log + PANIC) != ""


@pytest.mark.parametrize(
    ("text", "look"),
    [
        (b"~ # ", Look.PROMPT),
        (b"\r\n$ ", Look.PROMPT),
        (b"# ", Look.PROMPT),
        (b"\x1b[?2004h\x1b[1;31m[\x1b]0;root@nixos: ~\x07root@nixos:~]#\x1b[0m ", Look.PROMPT),
        (b"\r\n\x1b[1;32mroot\x1b[0m in / \r\n\xe2\x9d\xaf ", Look.PROMPT),
        (b"~ # \x1b[6n", Look.PROMPT),
        (b"~ # [    5.000000] random: crng init done\r\n", Look.PROMPT),
        (b"[    5.000000] usb 1-1: new device # \r\n", Look.OTHER),
        (b"[    5.000000] usb 1-1: new device # ", Look.PROMPT),
        (b"Debian GNU/Linux 12 debian ttyS0\r\n\r\ndebian login: ", Look.LOGIN),
        (b"(none) login: ", Look.LOGIN),
        (b"nixos login: root (automatic login)\r\n", Look.OTHER),
        (b"nixos login: root\r\nPassword: ", Look.LOGIN),
        (b"Give root password for maintenance\r\n(or press Control-D to continue): ", Look.EMERGENCY),
        (b"Press Enter for maintenance", Look.EMERGENCY),
        (b"", Look.OTHER),
    ],
)
def test_who_reads_the_console(text: bytes, look: Look) -> None:
    assert ready.look(text) is look


@pytest.mark.parametrize("kind", KINDS)
def test_a_shell_that_was_ready_long_ago_is_found(kind: str) -> None:
    with shell_guest(kind) as guest:
        with guest.console() as console:
            console.wait_ready(timeout=30)
        with guest.console() as console:
            console.wait_ready(timeout=30)
            console.sendline('echo usa""ble')
            assert console.expect("usable", timeout=30)[0] == "usable"


def test_a_shell_under_kernel_messages_is_found() -> None:
    with shell_guest("dash") as guest:
        with guest.console() as console:
            console.wait_ready(timeout=30)
            guest.say(b"[    5.000000] random: crng init done\r\n" * 20)
            console.expect("(?:random.*){20}", timeout=30)
        with guest.console() as console:
            console.wait_ready(timeout=30)
            console.sendline('echo usa""ble')
            assert console.expect("usable", timeout=30)[0] == "usable"


def test_what_was_said_until_the_shell_answered_is_left() -> None:
    with shell_guest("dash") as guest, guest.console() as console:
        guest.say(b"first words\r\n")
        console.wait_ready(timeout=30)
        console.expect("first words", timeout=30)
        with pytest.raises(DeadlineError):
            console.expect("echo", timeout=0.2)


@pytest.mark.parametrize(
    ("words", "found", "hint"),
    [
        (b"\r\nnixos login: ", "a login", "autologin"),
        (b"Press Enter for maintenance", "emergency", "root password"),
    ],
)
def test_somebody_who_lets_no_shell_come_is_an_error(words: bytes, found: str, hint: str) -> None:
    with line_guest(words) as guest, guest.console() as console:
        with pytest.raises(VmError, match=found) as caught:
            console.wait_ready(timeout=30)
        assert hint in caught.value.hint


def test_a_guest_that_says_nothing_is_an_error_at_the_deadline() -> None:
    with line_guest() as guest, guest.console() as console, pytest.raises(DeadlineError, match="a shell"):
        console.wait_ready(timeout=0.2)


def test_a_guest_that_dies_while_it_boots_is_an_error_at_once() -> None:
    with line_guest(b"booting\r\n") as guest, guest.console() as console:
        guest.say(PANIC + END)
        with pytest.raises(GuestDiedError, match="Attempted to kill init"):
            console.wait_ready(timeout=30)


def test_a_guest_that_takes_no_input_is_an_error() -> None:
    with line_guest() as guest, guest.console() as console:
        guest.stop()
        with pytest.raises(DeadlineError, match=r"waited 0\.2 s for the guest to accept input"):
            console.send("x" * 10_000_000, timeout=0.2)
