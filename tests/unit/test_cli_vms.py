"""The commands for running VMs: status, stop, log, exec."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path
from typing import Any

import pytest

from tests.unit import cli_doubles
from vmdebug import cli, vm
from vmdebug.channel.found import Found
from vmdebug.channel.shell import ExecResult, Streams
from vmdebug.cli import facts
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, UsageError, VmdebugError


@pytest.fixture
def vms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[vm.Vm]:
    """The running VMs, set by the test."""
    machines = [
        cli_doubles.machine("one", "halted", directory=tmp_path),
        cli_doubles.machine("two", "running", directory=tmp_path),
    ]

    def find(name: str | None = None, *, timeout: float = 30) -> vm.Vm:
        for each in machines:
            if each.name == name or (name is None and len(machines) == 1):
                return each
        raise UsageError(f"there is no VM named {name}")

    monkeypatch.setattr("vmdebug.vm.find", find)
    monkeypatch.setattr("vmdebug.vm.sweep", lambda: vm.Survey(tuple(machines), ()))
    return machines


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    calls: list[tuple[str, bool]] = []

    def stop(self: vm.Vm, *, force: bool = False) -> str:
        calls.append((self.name, force))
        return "SIGKILL" if force else "quit"

    monkeypatch.setattr(vm.Vm, "stop", stop)
    return calls


PROMISED = "name status pid accel guest kernel vmlinux build_id gdb qmp console_log".split()  # noqa: SIM905


def test_status_promises_these_facts(vms: list[vm.Vm], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["status", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in facts] == ["one", "two"]
    assert set(PROMISED) <= set(facts[0])


def test_status_says_which_way_into_the_guest_answers_once_that_is_known(
    vms: list[vm.Vm], capsys: pytest.CaptureFixture[str]
) -> None:
    vms[1].rundir.path.mkdir()
    assert cli.status_of(["status", "two"]) == 0
    assert "shell" not in capsys.readouterr().out
    Found("serial", "no agent answers in the guest").write(vms[1].rundir.ways.memory)
    assert cli.status_of(["status", "two"]) == 0
    says = "shell  the shell on the serial line, one command at a time: no agent answers in the guest\n"
    assert says in capsys.readouterr().out
    assert cli.status_of(["status", "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert one["shell"] is None
    assert two["shell"] == {"way": "serial", "reason": "no agent answers in the guest"}


def test_status_is_a_table(vms: list[vm.Vm], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME  STATUS   ACCEL  PID   RELEASE  GUEST",
        "one   halted   tcg    4711  6.1.0    /src/linux",
        "two   running  tcg    4711  6.1.0    /src/linux",
    ]


def test_status_of_one(vms: list[vm.Vm], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["status", "two"]) == 0
    out = capsys.readouterr().out
    assert "two  running" in out
    assert "/src/linux/vmlinux" in out


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        ("build-id", "match the kernel: build-id ab12"),
        ("banner", "match the kernel: its version and build date"),
        ("none", "it is unknown whether they match the kernel"),
    ],
)
def test_it_says_what_proves_the_symbols(proof: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmdebug.kimage.check", lambda *_: proof)
    assert facts.symbols(cli_doubles.KERNEL).splitlines() == ["/src/linux/vmlinux", said]


def test_symbols_that_have_gone_since_are_told_of() -> None:
    assert "/src/linux" in facts.symbols(cli_doubles.KERNEL).splitlines()[1]


def test_nothing_runs_is_no_error(vms: list[vm.Vm], capsys: pytest.CaptureFixture[str]) -> None:
    vms.clear()
    assert cli.status_of(["status"]) == 0
    assert cli.status_of(["stop", "--all"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "no VM is running" in err


def test_nothing_runs_as_json(vms: list[vm.Vm], capsys: pytest.CaptureFixture[str]) -> None:
    vms.clear()
    assert cli.status_of(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_state_that_cannot_be_read_hides_no_other(
    vms: list[vm.Vm], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = vm.Survey(tuple(vms), (VmdebugError("x/state.json is damaged"),))
    monkeypatch.setattr("vmdebug.vm.sweep", lambda: broken)
    assert cli.status_of(["status"]) == 0
    out, err = capsys.readouterr()
    assert "one   halted" in out
    assert "x/state.json is damaged" in err


@pytest.mark.parametrize(
    ("words", "calls"),
    [
        (["one"], [("one", False)]),
        (["two", "one"], [("two", False), ("one", False)]),
        (["--all"], [("one", False), ("two", False)]),
        (["--all", "--force"], [("one", True), ("two", True)]),
    ],
)
def test_stop_ends_the_named_ones(
    words: list[str], calls: list[tuple[str, bool]], vms: list[vm.Vm], ended: list[tuple[str, bool]]
) -> None:
    assert cli.status_of(["stop", *words]) == 0
    assert ended == calls


def test_stop_ends_none_where_one_name_is_wrong(vms: list[vm.Vm], ended: list[tuple[str, bool]]) -> None:
    assert cli.status_of(["stop", "one", "three"]) == 2
    assert ended == []


def test_log_is_the_file(vms: list[vm.Vm], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    vms[0].rundir.path.mkdir()
    vms[0].rundir.console_log.write_bytes(b"\xffLinux version 6.1\r\n~ # ")
    assert cli.status_of(["log", "one"]) == 0
    assert capfdbinary.readouterr().out == b"\xffLinux version 6.1\r\n~ # "
    assert cli.status_of(["log", "one", "--raw"]) == 0
    assert capfdbinary.readouterr().out == b"\xffLinux version 6.1\r\n~ # "


def test_log_f_becomes_tail_until_qemus_end(vms: list[vm.Vm], monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[Any]] = []
    monkeypatch.setattr("vmdebug.process.replace", became.append)
    vms[0].rundir.path.mkdir()
    vms[0].rundir.console_log.touch()
    assert cli.status_of(["log", "one", "-f"]) == 0
    assert became == [["tail", "-c", "+1", "--pid=4711", "-f", vms[0].rundir.console_log]]


class Shell:
    """A guest's shell that says what it is told to."""

    def __init__(self, found: Found | None = Found("agent")) -> None:  # noqa: B008 - it is frozen
        self.found = found
        self.asked: list[Any] = []

    def run(self, command: object, *, streams: Streams, deadline: Deadline) -> ExecResult:
        self.found = self.found or Found("serial", "no agent answers in the guest")
        self.asked.append((command, streams.stdin, deadline.seconds))
        assert streams.stdout
        assert streams.stderr
        streams.stdout(b"\xff\x00out")
        streams.stderr(b"err\n")
        return ExecResult("", "", 42)


def has_shell(machine: vm.Vm, monkeypatch: pytest.MonkeyPatch, shell: Shell) -> Shell:
    monkeypatch.setattr(type(machine), "shell", shell)
    return shell


def test_execs_output_and_status_are_ours(
    vms: list[vm.Vm], monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    shell = has_shell(vms[0], monkeypatch, Shell())
    words = ["exec", "two", "-n", "--timeout", "5", "--", "sh", "-c", "echo 'a b' -- $x"]
    assert cli.status_of(words) == 42
    assert capfdbinary.readouterr() == (b"\xff\x00out", b"err\n")
    assert shell.asked == [(("sh", "-c", "echo 'a b' -- $x"), None, 5.0)]


def test_execs_input_is_ours_unless_it_is_a_terminal(
    vms: list[vm.Vm], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = has_shell(vms[0], monkeypatch, Shell())
    master, slave = pty.openpty()
    with open(os.devnull) as file, os.fdopen(slave) as terminal, os.fdopen(master):  # noqa: PTH123
        for stdin in (file, terminal, None):
            monkeypatch.setattr("sys.stdin", stdin)
            cli.status_of(["exec", "two", "--", "cat"])
        monkeypatch.setattr("sys.stdin", terminal)
        cli.status_of(["exec", "two", "-i", "--", "cat"])
        assert [stdin for _, stdin, _ in shell.asked] == [file.fileno(), None, None, terminal.fileno()]


def test_exec_says_once_why_commands_go_over_the_serial_line(
    vms: list[vm.Vm], monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    has_shell(vms[0], monkeypatch, Shell(None))
    note = b"note: commands are run by the shell on the serial line, one command at a time: no agent answers"
    cli.status_of(["exec", "two", "-n", "--", "true"])
    assert note in capfdbinary.readouterr().err
    cli.status_of(["exec", "two", "-n", "--", "true"])
    assert note not in capfdbinary.readouterr().err


@pytest.mark.parametrize("status", ["halted", "paused"])
def test_exec_in_a_guest_that_stands_still_says_how_to_set_it_running(
    status: vm.Status, vms: list[vm.Vm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm.Vm, "status", lambda _self, **_: status)
    with pytest.raises(StateError, match=f"exec needs a running guest, and two is {status}") as caught:
        vms[1].check_running()
    assert "vmdebug attach two --batch" in caught.value.hint


def test_exec_without_the_dashes_says_where_they_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["exec", "one", "uname", "kernel"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "vmdebug: vmdebug exec does not take: uname kernel",
        "   hint: CMD [ARGS] follow two dashes: vmdebug exec … -- uname kernel",
    ]
