"""The commands `snapshot` and `clone`, with a VM that records its calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit import cli_doubles
from vmdebug import cli, vm
from vmdebug.debugger.ownership import VmOwner
from vmdebug.vm.clones import clone as cloning
from vmdebug.vm.snapshot import Snapshot

TAKEN = (
    Snapshot(tag="1", bytes=34_000_000, time=100.0, guest_time=1.5),
    Snapshot(tag="late", bytes=35_000_000, time=200.0, guest_time=60.0),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, object]]:
    calls: list[tuple[str, object]] = []
    machine = cli_doubles.machine("one", "running", directory=tmp_path)
    machine.rundir.path.mkdir(exist_ok=True)
    monkeypatch.setattr("vmdebug.vm.find", lambda *_: machine)
    monkeypatch.setattr(vm.Vm, "status", lambda *_, **__: "running")
    monkeypatch.setattr(vm.Vm, "snapshots", lambda *_: TAKEN)
    for word in ("snapshot", "restore", "delete_snapshot"):
        monkeypatch.setattr(vm.Vm, word, lambda _, tag, word=word: calls.append((word, tag)))
    return calls


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["save", "one", "mine"], ("snapshot", "mine")),
        (["save", "one"], ("snapshot", "2")),
        (["load", "one", "1"], ("restore", "1")),
        (["load", "one"], ("restore", "late")),
        (["delete", "one", "1"], ("delete_snapshot", "1")),
    ],
)
def test_each_does_what_it_says(
    asked: list[tuple[str, object]], words: list[str], call: tuple[str, object]
) -> None:
    assert cli.status_of(["snapshot", *words]) == 0
    assert asked == [call]


def test_the_list_is_a_table_and_json(
    asked: list[tuple[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["snapshot", "list", "one"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["TAG", "1", "late"]
    assert cli.status_of(["snapshot", "list", "one", "--json"]) == 0
    assert [each["tag"] for each in json.loads(capsys.readouterr().out)] == ["1", "late"]


@pytest.mark.parametrize(
    "words", [["snapshot", "load", "one"], ["snapshot", "save", "one"], ["clone", "one"]]
)
def test_beside_a_gdb_it_is_refused(
    asked: list[tuple[str, object]],
    tmp_path: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with VmOwner.claim(vm.find("one").rundir.attach_lock, "one"):
        assert cli.status_of(words) == 1
    assert "attached" in capsys.readouterr().err
    assert asked == []


def test_clones_are_named_on_stdout(
    asked: list[tuple[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def clone(machine: vm.Vm, count: int, **_: object) -> list[vm.Vm]:
        return [
            cli_doubles.machine(f"{machine.name}-{number}", "running", directory=tmp_path)
            for number in range(1, count + 1)
        ]

    monkeypatch.setattr(cloning, "clone", clone)
    assert cli.status_of(["clone", "one", "--count", "2"]) == 0
    assert capsys.readouterr().out == "one-1\none-2\n"
