from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from vmdebug import guest
from vmdebug.errors import HostError, VmdebugError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine, RunnerMachine
from vmdebug.process import ProcessRef
from vmdebug.vm import state
from vmdebug.vm.state import Launching, State

QEMU = ProcessRef(1234, 5678)


def some_state(machine: OwnMachine | RunnerMachine) -> State:
    return State(
        spec=LaunchSpec(
            name="vm",
            guest=".#vm",
            machine=machine,
            kernel=Kernel(arch="x86_64", image=Path("/bzImage"), origin="a test", vmlinux=Path("/vmlinux")),
            parameters=("console=ttyS0",),
        ),
        qemu=QEMU,
        leader=ProcessRef(1233, 5677),
        accel="tcg",
        reason="asked for",
        argv=("qemu", "-S"),
        env={"A": "b"},
        owner=ProcessRef(1, 2),
        gdb="127.0.0.1:1234",
        started_at=1.5,
    )


@pytest.mark.parametrize(
    "machine",
    [OwnMachine(initrd=Path("/i")), RunnerMachine(script=Path("/run-vm-vm"), system_name="vm")],
)
def test_a_state_comes_back_as_it_went(tmp_path: Path, machine: OwnMachine | RunnerMachine) -> None:
    written = some_state(machine)
    state.write(tmp_path / "state.json", written)
    assert state.read(tmp_path / "state.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_state_names_its_vm() -> None:
    assert (some_state(OwnMachine()).name, some_state(OwnMachine()).pid) == ("vm", 1234)


def test_a_launch_comes_back_as_it_went(tmp_path: Path) -> None:
    written = Launching(launcher=QEMU, guardian=ProcessRef(7, 8), scratch=Path("/var/tmp/x"))
    state.write(tmp_path / "launch.json", written)
    assert state.read_launching(tmp_path / "launch.json") == written


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert state.read(tmp_path / "state.json") is None
    assert state.read_launching(tmp_path / "launch.json") is None


def test_another_layout_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    newer = msgspec.structs.replace(some_state(OwnMachine()), layout=state.LAYOUT + 1)
    path.write_bytes(guest.encode(newer))
    with pytest.raises(VmdebugError) as caught:
        state.read(path)
    assert f"has layout {state.LAYOUT + 1}" in caught.value.message
    assert str(tmp_path) in caught.value.hint


def test_an_older_layout_without_todays_fields_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"layout": 0, "pid": 7}')
    with pytest.raises(VmdebugError, match="has layout 0"):
        state.read(tmp_path / "state.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"layout": 1}', "\0\0"])
def test_a_damaged_file_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(VmdebugError, match="is damaged"):
        state.read(tmp_path / "state.json")


def test_a_damaged_launch_is_none(tmp_path: Path) -> None:
    (tmp_path / "launch.json").write_text("{")
    assert state.read_launching(tmp_path / "launch.json") is None


def test_no_space_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HostError, match="No space left on device") as caught:
        state.write(tmp_path / "state.json", some_state(OwnMachine()))
    assert "free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
