from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmdebug.errors import HostError, UsageError
from vmdebug.vm import rundir
from vmdebug.vm.rundir import RunDir


@pytest.mark.parametrize("name", ["a", "o2", "base-nixos", "7.x_y", "a" * 63])
def test_a_name_may_be(name: str, tmp_path: Path) -> None:
    rundir.check_name(name)
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a b", "a,b", "ä", "a" * 64, "a\n"])
def test_a_name_may_not_be(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        rundir.check_name(name)
    assert repr(name) in caught.value.message


def test_a_socket_path_may_have_107_bytes_and_not_108() -> None:
    fits = "/" + "r" * (107 - len("/" + "/console.sock"))
    longest = RunDir(Path(fits))
    assert len(os.fsencode(longest.console)) == 107
    longest.check()
    with pytest.raises(HostError) as caught:
        RunDir(Path(fits + "r")).check()
    assert ".sock has 108 bytes, and must not exceed 107" in caught.value.message
    assert "XDG_RUNTIME_DIR" in caught.value.hint
    assert "name=" in caught.value.hint


def test_a_socket_path_is_measured_in_bytes() -> None:
    with pytest.raises(HostError, match="bytes"):
        RunDir(Path("/" + "ä" * 60)).check()


def test_scratch_is_elsewhere_and_told_apart_by_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/big")
    one, other = RunDir(Path("/run/1/vm")), RunDir(Path("/run/2/vm"))
    assert one.scratch.parent == Path("/big")
    assert one.scratch.name.startswith(f"vmdebug-{os.geteuid()}-vm-")
    assert one.scratch != other.scratch
    monkeypatch.delenv("TMPDIR")
    assert one.scratch.parent == Path("/var/tmp")
