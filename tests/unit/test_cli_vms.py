"""The commands for running VMs: status, stop, log, exec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit import cli_doubles
from vmdebug import cli, vm
from vmdebug.channel.serial.command import ExecResult
from vmdebug.cli import facts
from vmdebug.errors import UsageError, VmdebugError


@pytest.fixture
def vms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[vm.Vm]:
    """The running VMs, set by the test."""
    machines = [
        cli_doubles.machine("one", "halted", directory=tmp_path),
        cli_doubles.machine("two", "running", directory=tmp_path),
    ]

    def find(name: str | None = None) -> vm.Vm:
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
    assert became == [["tail", "-n", "+1", "--pid=4711", "-f", vms[0].rundir.console_log]]


class Session:
    def __init__(self, result: ExecResult) -> None:
        self.name, self.status = "two", "running"
        self.result = result
        self.asked: list[Any] = []

    def __enter__(self) -> Session:  # noqa: PYI034 - a double
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def exec(self, command: object, *, timeout: float) -> ExecResult:
        self.asked.append((command, timeout))
        return self.result


def test_execs_output_and_status_are_ours(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    said = ExecResult(b"\xff\x00out".decode(errors="surrogateescape"), "err\n", 42)
    session = Session(said)
    monkeypatch.setattr("vmdebug.session.attach", lambda _name: session)
    words = ["exec", "two", "--timeout", "5", "--", "sh", "-c", "echo 'a b' -- $x"]
    assert cli.status_of(words) == 42
    assert capfdbinary.readouterr() == (b"\xff\x00out", b"err\n")
    assert session.asked == [(("sh", "-c", "echo 'a b' -- $x"), 5.0)]


@pytest.mark.parametrize("status", ["halted", "paused"])
def test_exec_in_a_guest_that_stands_still_says_how_to_set_it_running(
    status: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(ExecResult("", "", 0))
    session.status = status
    monkeypatch.setattr("vmdebug.session.attach", lambda _name: session)
    assert cli.status_of(["exec", "--", "true"]) == 1
    assert "vmdebug attach two --batch" in capsys.readouterr().err
    assert session.asked == []


def test_exec_without_the_dashes_says_where_they_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["exec", "one", "uname", "kernel"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "vmdebug: vmdebug exec does not take: uname kernel",
        "   hint: CMD [ARGS] follow two dashes: vmdebug exec … -- uname kernel",
    ]
