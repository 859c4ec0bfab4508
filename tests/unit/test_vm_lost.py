"""A VM whose run directory was removed: it is found, named, stopped, and keeps its name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import cli_doubles
from tests.unit.test_vm_directory_use import reserve
from vmdebug import cli, process, vm
from vmdebug.errors import StateError, UsageError
from vmdebug.vm import lost, runtime_directory
from vmdebug.vm.lost import LostVm
from vmdebug.vm.rundir import RunDir

QEMU = """
import signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1])
    server.listen()
    print("listening", flush=True)
    signal.pause()
"""
"""Replaces QEMU: listens on the control socket, and has the pidfile in its command line."""


@pytest.fixture
def directory(runtime: Path) -> RunDir:
    """The run directory of a VM."""
    found = RunDir(runtime_directory.location() / "v")
    found.path.mkdir(parents=True, mode=0o700)
    runtime_directory.location().chmod(0o700)
    return found


@pytest.fixture
def qemu(directory: RunDir) -> Iterator[process.Child]:
    """Its QEMU."""
    argv = [sys.executable, "-c", QEMU, str(directory.control), "-pidfile", str(directory.pidfile)]
    with process.spawn(argv, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"listening\n"
        yield child
        shutil.rmtree(runtime_directory.location(), ignore_errors=True)


@pytest.fixture
def removed(directory: RunDir, qemu: process.Child) -> process.Child:
    """Its QEMU, after the runtime directory was removed as at a logout."""
    shutil.rmtree(runtime_directory.location())
    return qemu


def test_a_vm_with_its_directory_is_not_lost(qemu: process.Child) -> None:
    assert lost.every() == ()


def test_a_lost_vm_is_found_with_its_pid(directory: RunDir, removed: process.Child) -> None:
    assert [(each.name, each.qemu.pid) for each in lost.every()] == [("v", removed.pid)]
    assert lost.of(directory) is not None
    assert lost.of(RunDir(directory.path.with_name("w"))) is None


def test_status_shows_it(removed: process.Child, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["v", "lost", str(removed.pid)]
    assert cli.status_of(["status", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["status"], found["pid"]) == ("v", "lost", removed.pid)


@pytest.mark.parametrize("words", [["stop", "v"], ["stop", "--all"], ["stop", "v", "--force"]])
def test_stop_ends_it(removed: process.Child, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(words) == 0
    assert removed.wait() < 0
    assert "v: " in capsys.readouterr().err
    assert lost.every() == ()


@pytest.mark.parametrize("name", ["v", None])
def test_a_command_that_needs_it_says_what_happened(removed: process.Child, name: str | None) -> None:
    with pytest.raises(StateError, match=f"was removed while its QEMU, pid {removed.pid}") as caught:
        vm.find(name)
    assert caught.value.hint == "end it: vmdebug stop v"


def test_its_name_is_taken_while_it_runs(removed: process.Child) -> None:
    with pytest.raises(UsageError, match=f"pid {removed.pid}"):
        reserve("v")
    other = reserve("v", exact=False)
    assert other.name == "v-2"
    runtime_directory.remove(other.path)


def test_a_program_that_only_has_the_socket_is_not_taken_for_a_qemu(directory: RunDir) -> None:
    argv = [sys.executable, "-c", QEMU, str(directory.control)]
    with process.spawn(argv, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"listening\n"
        shutil.rmtree(runtime_directory.location())
        assert lost.every() == ()
        assert vm.find_lost("v") is None


def test_its_facts_have_the_keys_of_every_vm(directory: RunDir) -> None:
    facts = LostVm(directory, process.ProcessRef.me()).facts()
    assert facts.keys() == cli_doubles.machine().facts().keys()
    shutil.rmtree(runtime_directory.location())
