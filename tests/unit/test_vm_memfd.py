from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from vmdebug.errors import HostError
from vmdebug.process import ProcessRef
from vmdebug.vm import memfd
from vmdebug.vm.memfd import SharedFile


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_file_without_a_name_holds_what_it_is_filled_with(tmp_path: Path, on_disk: bool) -> None:
    fd = memfd.create("x", tmp_path if on_disk else None)
    try:
        assert list(tmp_path.iterdir()) == []
        memfd.write(fd, b"first, and longer")
        memfd.write(fd, b"second")
        assert memfd.read(fd) == b"second"
        assert Path(memfd.path(fd)).read_bytes() == b"second"
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR])
def test_a_file_system_without_o_tmpfile_has_one_whose_name_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.open

    def without(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode)

    monkeypatch.setattr("os.open", without)
    fd = memfd.create("ram", tmp_path)
    memfd.write(fd, b"memory")
    assert list(tmp_path.iterdir()) == []
    found = SharedFile.of(fd).open()
    assert found is not None
    assert memfd.read(found) == b"memory"
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(found)
    os.close(fd)


def test_a_full_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.open", full)
    with pytest.raises(HostError, match=f"memory in {tmp_path}: No space left on device; the file system /"):
        memfd.create("ram", tmp_path)


def test_another_process_finds_it_while_it_is_held() -> None:
    fd = memfd.create("x")
    memfd.write(fd, b"here")
    shared = SharedFile.of(fd)
    found = shared.open()
    assert found is not None
    assert memfd.read(found) == b"here"
    os.close(found)
    os.close(fd)
    assert shared.open() is None


def test_another_file_under_its_descriptor_is_not_taken_for_it() -> None:
    fd, other = memfd.create("x"), memfd.create("y")
    shared = SharedFile.of(fd)
    os.dup2(other, fd)
    assert shared.open() is None
    os.close(fd)
    os.close(other)


def test_a_holder_that_has_gone_holds_nothing() -> None:
    assert SharedFile(ProcessRef(pid=1, started=-1), fd=0, inode=0).open() is None


@pytest.mark.parametrize(("free", "room"), [(320, True), (319, False)])
def test_room_is_for_the_memory_and_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, room: bool
) -> None:
    monkeypatch.setattr(memfd, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {free * 1024} kB\n")
    assert (memfd.shortage(256) == "") is room


def test_a_directory_is_asked_for_its_own_room(tmp_path: Path) -> None:
    assert memfd.shortage(1, tmp_path) == ""
    assert memfd.shortage(1 << 40, tmp_path).endswith(" MiB")
    with pytest.raises(HostError, match="/nowhere"):
        memfd.shortage(1, Path("/nowhere"))
    with pytest.raises(HostError, match="cannot keep a guest's memory in /nowhere"):
        memfd.create("x", Path("/nowhere"))


def test_a_file_goes_through_a_pipe_as_a_whole() -> None:
    fd = memfd.create("state")
    memfd.write(fd, bytes(range(256)) * 4096)
    with memfd.piped(fd) as reading:
        os.close(fd)  # the pipe has a descriptor of its own
        with open(os.dup(reading), "rb") as stream:  # noqa: PTH123 - a descriptor
            assert stream.read() == bytes(range(256)) * 4096


def test_a_pipe_that_nobody_reads_to_its_end_leaves_nothing() -> None:
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    fd = memfd.create("state")
    memfd.write(fd, bytes(1 << 20))
    with memfd.piped(fd) as reading:
        assert os.read(reading, 10) == bytes(10)
    os.close(fd)
    for thread in threading.enumerate():
        if thread.name == "vmdebug-pipe":
            thread.join(10)
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
