from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmdebug.errors import HostError
from vmdebug.process import ProcessRef
from vmdebug.vm.saved import nameless
from vmdebug.vm.saved.nameless import Shared


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_file_without_a_name_holds_what_it_is_filled_with(tmp_path: Path, on_disk: bool) -> None:
    fd = nameless.make("x", tmp_path if on_disk else None)
    try:
        assert list(tmp_path.iterdir()) == []
        nameless.fill(fd, b"first, and longer")
        nameless.fill(fd, b"second")
        assert nameless.content(fd) == b"second"
        assert Path(nameless.path(fd)).read_bytes() == b"second"
    finally:
        os.close(fd)


def test_another_process_finds_it_while_it_is_held() -> None:
    fd = nameless.make("x")
    nameless.fill(fd, b"here")
    shared = Shared.of(fd)
    found = shared.open()
    assert found is not None
    assert nameless.content(found) == b"here"
    os.close(found)
    os.close(fd)
    assert shared.open() is None


def test_another_file_under_its_descriptor_is_not_taken_for_it() -> None:
    fd, other = nameless.make("x"), nameless.make("y")
    shared = Shared.of(fd)
    os.dup2(other, fd)
    assert shared.open() is None
    os.close(fd)
    os.close(other)


def test_a_holder_that_has_gone_holds_nothing() -> None:
    assert Shared(ProcessRef(pid=1, started=-1), fd=0, inode=0).open() is None


@pytest.mark.parametrize(("free", "room"), [(320, True), (319, False)])
def test_room_is_for_the_memory_and_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, room: bool
) -> None:
    monkeypatch.setattr(nameless, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {free * 1024} kB\n")
    assert (nameless.room(256) == "") is room


def test_a_directory_is_asked_for_its_own_room(tmp_path: Path) -> None:
    assert nameless.room(1, tmp_path) == ""
    assert nameless.room(1 << 40, tmp_path).endswith(" MiB")
    with pytest.raises(HostError, match="/nowhere"):
        nameless.room(1, Path("/nowhere"))
    with pytest.raises(HostError, match="cannot keep a guest's memory in /nowhere"):
        nameless.make("x", Path("/nowhere"))
