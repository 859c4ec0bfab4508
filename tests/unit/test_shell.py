"""`exec` through real shells on pseudo-terminals, with kernel messages in between."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.serial_guest import KINDS, SerialGuest, between, kernel_lines, shell_guest
from vmdebug.channel.serial import framing
from vmdebug.channel.serial.console import Console
from vmdebug.channel.shell import Output
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, UsageError, VmError


@pytest.fixture(scope="module", params=KINDS)
def guest(request: pytest.FixtureRequest) -> Iterator[SerialGuest]:
    """A serial line with a shell of each kind; `dash` is what Debian's `sh` is."""
    with shell_guest(request.param) as line:
        yield line


@pytest.fixture
def console(guest: SerialGuest) -> Iterator[Console]:
    guest.interfere = bytes
    with guest.console() as opened:
        opened.wait_ready(timeout=30)
        yield opened
        opened.wait_ready(timeout=30)
        assert guest.left_over() == []


def soon() -> Deadline:
    return Deadline.after(30)


def run(console: Console, command: str | list[str]) -> Output:
    return console.line.shell.execute(command, deadline=soon())


@pytest.mark.parametrize(
    ("command", "stdout", "status"),
    [
        ("true", b"", 0),
        ("false", b"", 1),
        ("echo hello", b"hello\n", 0),
        ("printf 'no newline'", b"no newline", 0),
        (r"printf '\000\001\377\n\000'", b"\0\1\xff\n\0", 0),
        ("echo one\necho two\nexit 7", b"one\ntwo\n", 7),
        ("cat <<'E'\n$a `b` \"c\" 'd' \\e !f\nE\n", b"$a `b` \"c\" 'd' \\e !f\n", 0),
        ("echo a\\\n", b"a\n", 0),
        ("printf %s '\t\x03\x04\x11\x15\x16\x1a\x1c\x7f'", b"\t\x03\x04\x11\x15\x16\x1a\x1c\x7f", 0),
        ("printf %s 'äöü → \udcff'", "äöü → ".encode() + b"\xff", 0),
        ("echo '%s %b \\0101 \\n'", None, 0),
        (r"printf 'a^b [c] d_e  f '", b"a^b [c] d_e  f ", 0),
        (r"printf '\na  b\r\n c '", b"\na  b\r\n c ", 0),
        (r"printf '\nKernel panic - not syncing: no\n'", b"\nKernel panic - not syncing: no\n", 0),
        ("cat", b"", 0),
        ("kill -9 $$", b"", 137),
        ("kill -INT $$; echo it is not ignored", b"", 130),
        ("exec 3>&1; (echo sub; exit 3)", b"sub\n", 3),
        ("no-such-program", b"", 127),
    ],
)
def test_a_line_of_shell_comes_back_exactly(
    console: Console, command: str, stdout: bytes | None, status: int
) -> None:
    result = run(console, command)
    assert result.status == status
    if stdout is not None:
        assert result.stdout == stdout


def test_both_outputs_are_told_apart(console: Console) -> None:
    assert run(console, "echo out; echo err >&2; exit 4") == Output(b"out\n", b"err\n", 4)


def test_an_argv_is_quoted(console: Console) -> None:
    words = ["a b", "it's", '"', "$HOME", "*", "", "\n", "\\", "!x"]
    assert run(console, ["printf", "%s|", *words]).stdout == "|".join([*words, ""]).encode()


def test_nothing_of_one_run_is_left_for_the_next(console: Console) -> None:
    before = run(console, "umask; pwd; set").stdout
    run(console, "umask 0; cd /; x=1; trap '' 2; set -C")
    assert run(console, "umask; pwd; set").stdout.splitlines()[:2] == before.splitlines()[:2]


def test_a_command_longer_than_a_terminal_holds(console: Console) -> None:
    lines = [f"echo 'line {number} ä'\n" for number in range(1000)]
    assert run(console, "".join(lines)).stdout.decode().splitlines() == [
        f"line {number} ä" for number in range(1000)
    ]


def test_a_command_longer_than_an_argument(console: Console) -> None:
    text = "x" * 150_000
    assert run(console, f": {text}; echo done").stdout == b"done\n"


def test_a_megabyte(console: Console) -> None:
    stdout = run(console, "yes 2>/dev/null | head -c 1000000 || head -c 1000000 /dev/zero").stdout
    assert len(stdout) == 1_000_000


def test_what_cannot_be_compressed(console: Console) -> None:
    result = run(console, "head -c 200000 /dev/urandom | dd bs=1000 2>/dev/null")
    assert len(result.stdout) == 200_000


def test_a_child_in_the_background_goes_on(console: Console) -> None:
    child = run(console, "sleep 300 & echo $!").stdout.decode().strip()
    assert run(console, f"kill {child}").status == 0


def test_there_is_no_terminal_to_read(console: Console) -> None:
    assert run(console, "cat </dev/tty").status != 0


@pytest.mark.parametrize("command", ["", " ", "\n", "a\0b", []])
def test_what_no_shell_can_take_is_refused(console: Console, command: str | list[str]) -> None:
    with pytest.raises(UsageError):
        console.line.shell.execute(command, deadline=soon())


def test_a_command_that_hangs_is_ended_and_the_console_goes_on(guest: SerialGuest, console: Console) -> None:
    with pytest.raises(DeadlineError, match="`sleep 300` to end in the guest") as caught:
        console.line.shell.execute("sleep 300", deadline=Deadline.after(0.5))
    assert not caught.value.hint
    assert not console.line.shell.interrupted
    assert run(console, "echo still here").stdout == b"still here\n"
    assert guest.left_over() == []


def test_a_command_that_ignores_sigterm_is_ended_too(console: Console) -> None:
    with pytest.raises(DeadlineError):
        console.line.shell.execute(
            "trap '' INT TERM; while :; do sleep 300; done", deadline=Deadline.after(0.5)
        )
    assert run(console, "echo still here").stdout == b"still here\n"


def test_an_interrupted_call_ends_its_command(
    guest: SerialGuest, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = guest.directory / "runs"
    receive = console.line.receive

    def interrupt(seconds: float, wanted: str) -> bytes:
        if marker.exists():
            marker.unlink()
            raise KeyboardInterrupt
        return receive(seconds, wanted)

    monkeypatch.setattr(console.line, "receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(console, f"echo >{shlex.quote(str(marker))}; sleep 300")
    assert not console.line.shell.interrupted
    assert run(console, "echo still here").stdout == b"still here\n"


@pytest.mark.parametrize("victim", ["$PPID", "$(read -r a b c d e f </proc/$PPID/stat; echo $d)"])
def test_a_command_that_kills_its_shell_is_an_error(console: Console, victim: str) -> None:
    with pytest.raises(VmError, match="killed the shell"):
        run(console, f"kill -9 {victim}; sleep 300")
    assert run(console, "echo still here").stdout == b"still here\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_that_cannot_be_written_to_is_passed_over(kind: str) -> None:
    with shell_guest(kind, TMPDIR="/nonexistent") as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        assert run(console, "echo hi").stdout == b"hi\n"


@pytest.mark.parametrize("kind", KINDS)
def test_nowhere_to_write(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "PREPARE", framing.PREPARE.replace(framing.DIRECTORIES, "/nonexistent"))
    with shell_guest(kind) as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        with pytest.raises(VmError, match="no writable directory"):
            run(console, "echo hi")
        assert not console.line.shell.interrupted
        console.sendline('echo usa""ble')
        console.expect("usable", timeout=30)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (b"[    9.000000] Kernel panic - not syncing: sysrq triggered crash\r\n", "sysrq triggered crash"),
        (b"[    9.000000] reboot: Power down\r\n", "powered off"),
        (None, "QEMU has ended"),
    ],
)
def test_a_guest_that_dies_meanwhile_is_an_error_at_once(words: bytes | None, cause: str) -> None:
    def die(guest: SerialGuest) -> None:
        guest.wait_typed(b"setsid")
        if words is None:
            guest.leave()
        else:
            guest.say(words)

    with shell_guest("dash") as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        death = threading.Thread(target=die, args=(guest,))
        death.start()
        with pytest.raises(GuestDiedError, match=cause):
            run(console, "sleep 300")
        death.join()


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_messages_of_the_time_are_left_for_expect(kind: str) -> None:
    with shell_guest(kind) as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        guest.interfere = between([700], [b"[    5.000000] hello: from the kernel\r\n"])
        assert run(console, "echo hi").stdout == b"hi\n"
        console.expect("hello: from the kernel", timeout=30)


@pytest.mark.parametrize("kind", KINDS)
def test_output_torn_by_what_is_no_kernel_message_is_fetched_again(kind: str) -> None:
    with shell_guest(kind) as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        # The first one lands in the data, which starts some 1000 bytes after what is typed first.
        guest.interfere = between(
            [5000, *[9000] * 20], [b"EXT4-fs (vda): mounted\r\n", b"\x1b[32m  OK  \x1b[0m"]
        )
        assert len(run(console, "head -c 60000 /dev/urandom").stdout) == 60000


def test_an_answer_torn_by_what_is_no_kernel_message_is_asked_for_again() -> None:
    with shell_guest("dash") as guest, guest.console() as console:
        console.wait_ready(timeout=30)

        def tear(data: bytes) -> bytes:
            status = data.find(b":s3.")
            if status < 0:
                return data
            guest.interfere = bytes
            return data[: status + 2] + b"random: crng init done\r\n" + data[status + 2 :]

        guest.interfere = tear
        assert run(console, "exit 3").status == 3


def test_a_guest_without_gzip() -> None:
    with shell_guest("dash", without=["gzip"]) as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        assert run(console, "echo out; echo err >&2; exit 4") == Output(b"out\n", b"err\n", 4)
        assert len(run(console, "yes | head -c 50000").stdout) == 50000


@pytest.mark.parametrize("program", ["base64", "setsid"])
def test_a_guest_that_lacks_a_program(program: str) -> None:
    with shell_guest("dash", without=[program]) as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        with pytest.raises(VmError, match=f"the guest has no {program}"):
            run(console, "echo hi")
        assert not console.line.shell.interrupted
        assert guest.left_over() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_in_the_foreground_is_named_as_the_reason(kind: str) -> None:
    with shell_guest(kind) as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        gate = guest.directory / "gate"
        os.mkfifo(gate)
        console.sendline(f"cat {gate}")
        with pytest.raises(DeadlineError, match="to accept a command") as caught:
            console.line.shell.execute("echo hi", deadline=Deadline.after(0.2))
        assert "foreground" in caught.value.hint
        assert not console.line.shell.interrupted
        gate.write_text("opened\n")
        # The agent, which starts only now, goes again by itself.
        console.expect("opened", timeout=30)
        console.line.shell.ready = False
        console.wait_ready(timeout=30)
        console.sendline('echo "shell is ${vmd-itself}"')
        console.expect("shell is itself", timeout=30)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_was_killed_leaves_a_command_that_the_next_one_ends(kind: str) -> None:
    with shell_guest(kind) as guest:
        with guest.console() as console:
            console.wait_ready(timeout=30)
            console.send(framing.start("0123456789"))
            console.expect("_0123456789:r", timeout=30)
            console.send(framing.PREPARE + "_c='sleep 300'\n" + framing.run("22"))
            console.line.shell.interrupted = True
        with guest.console() as console:
            assert console.line.shell.interrupted
            assert run(console, "echo hi").stdout == b"hi\n"
        assert guest.left_over() == []


def hang_once_it_runs(guest: SerialGuest) -> None:
    guest.wait_typed(b"setsid")
    guest.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_that_does_not_answer_is_an_error_that_says_so(kind: str) -> None:
    with shell_guest(kind) as guest, guest.console() as console:
        console.wait_ready(timeout=30)
        hang = threading.Thread(target=hang_once_it_runs, args=(guest,))
        hang.start()
        with pytest.raises(DeadlineError, match="sleep 300") as caught:
            console.line.shell.execute("sleep 300", deadline=Deadline.after(1))
        hang.join()
        assert "does not react to ^C" in caught.value.hint
        assert console.line.shell.interrupted
        guest.go_on()
        assert run(console, "echo hi").stdout == b"hi\n"


gaps = st.lists(st.integers(0, 200), max_size=60)


@settings(max_examples=25)
@given(
    result=st.builds(Output, st.binary(max_size=3000), st.binary(max_size=300), st.integers(0, 255)),
    gaps=gaps,
    lines=st.lists(kernel_lines, min_size=1, max_size=5),
)
def test_any_output_comes_through_kernel_messages_anywhere(
    guest: SerialGuest, result: Output, gaps: list[int], lines: list[bytes]
) -> None:
    command = f"printf '{octal(result.stdout)}'; printf '{octal(result.stderr)}' >&2; exit {result.status}"
    with guest.console() as console:
        console.wait_ready(timeout=30)
        guest.interfere = between(gaps, lines)
        assert run(console, command) == result


@settings(max_examples=25)
@given(words=st.lists(st.text(st.characters(blacklist_characters="\0"), max_size=40), min_size=1, max_size=5))
def test_any_words_arrive_as_they_are(guest: SerialGuest, words: list[str]) -> None:
    guest.interfere = bytes
    with guest.console() as console:
        console.wait_ready(timeout=30)
        sent = [word.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for word in words]
        came = run(console, ["printf", "%s\\n", *sent]).stdout
    assert came == b"".join(word.encode("utf-8", "surrogatepass") + b"\n" for word in words)


def octal(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)
