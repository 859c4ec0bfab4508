from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vmdebug import locks, process
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, HostError
from vmdebug.vm import runtime_directory
from vmdebug.vm.rundir import RunDir


def soon() -> Deadline:
    return Deadline.after(10)


def test_runtime_is_xdg_runtime_dir_else_a_directory_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert runtime_directory.location() == Path("/run/user/7/vmdebug")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_directory.location() == Path(f"/tmp/vmdebug-{os.geteuid()}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert runtime_directory.location() == Path(f"/tmp/vmdebug-{os.geteuid()}")


def test_directories_are_private_whatever_the_umask(runtime: Path) -> None:
    before = os.umask(0)
    try:
        with runtime_directory.locked(soon()) as where:
            one = RunDir(where / "one")
            runtime_directory.make(one)
            assert where.stat().st_mode & 0o777 == 0o700
            assert one.path.stat().st_mode & 0o777 == 0o700
            runtime_directory.remove(one.path)
    finally:
        os.umask(before)


def test_the_lock_leaves_no_directory_where_no_vm_is(runtime: Path) -> None:
    with runtime_directory.locked(soon()):
        assert runtime_directory.location().is_dir()
    assert not runtime_directory.location().exists()


def test_the_lock_keeps_a_directory_that_has_a_vm(runtime: Path) -> None:
    with runtime_directory.locked(soon()) as where:
        (where / "one").mkdir()
    assert (runtime_directory.location() / "one").is_dir()
    with runtime_directory.locked(soon()) as where:
        (where / "one").rmdir()


def test_the_lock_keeps_others_out(runtime: Path) -> None:
    with (
        runtime_directory.locked(soon()),
        pytest.raises(DeadlineError),
        runtime_directory.locked(Deadline.after(0.05)),
    ):
        pass


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_directory_that_others_can_enter_is_refused(runtime: Path, mode: int) -> None:
    where = runtime_directory.location()
    where.mkdir()
    where.chmod(mode)
    with pytest.raises(HostError, match=f"its mode is {mode:04o}"), runtime_directory.locked(soon()):
        pass
    with pytest.raises(HostError, match="would not be safe"):
        runtime_directory.root()


def test_a_link_is_refused(runtime: Path, tmp_path: Path) -> None:
    runtime_directory.location().symlink_to(tmp_path)
    with pytest.raises(HostError, match="is a symbolic link"), runtime_directory.locked(soon()):
        pass


def test_a_file_is_refused(runtime: Path) -> None:
    runtime_directory.location().touch()
    with pytest.raises(HostError, match="is not a directory"), runtime_directory.locked(soon()):
        pass


def test_somebody_elses_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_directory.location().mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(HostError, match=f"belongs to user {owner}"), runtime_directory.locked(soon()):
        pass


def test_a_missing_xdg_runtime_dir_says_so(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "nowhere"))
    with pytest.raises(HostError) as caught, runtime_directory.locked(soon()):
        pass
    assert "names a directory that does not exist" in caught.value.hint
    with pytest.raises(HostError):
        runtime_directory.root()


def test_a_file_as_xdg_runtime_dir_says_so(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runtime / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "file"))
    with pytest.raises(HostError) as caught, runtime_directory.locked(soon()):
        pass
    assert "names a file" in caught.value.hint


def test_root_is_where_vms_can_be(runtime: Path) -> None:
    assert runtime_directory.root() == runtime / "vmdebug"


def test_a_full_file_system_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(runtime)
    full = os.statvfs_result((*free[:4], 0, *free[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(HostError, match="No space left on device"), runtime_directory.locked(soon()) as where:
        runtime_directory.make(RunDir(where / "one"))
    assert not runtime_directory.location().exists()
    with pytest.raises(HostError, match="No space left on device"):
        runtime_directory.root()


def test_the_files_of_the_vm_to_be_replaced_count_as_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = os.statvfs_result((4096, 4096, 768, 100, 100, 10, 0, 0, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda _: sizes)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    directory = RunDir(tmp_path / "vmdebug" / "v")
    directory.path.mkdir(parents=True)
    with pytest.raises(HostError, match=f"keep a VM's files in {directory.path.parent}: No space left"):
        runtime_directory.check_room(directory, scratch=False)
    directory.console_log.write_bytes(bytes(1 << 20))
    runtime_directory.check_room(directory, scratch=False)
    with pytest.raises(HostError, match=f"keep a VM's files in {tmp_path}: No space left on device; the"):
        runtime_directory.check_room(directory, scratch=True)
    directory.scratch.mkdir()
    (directory.scratch / "disk").write_bytes(bytes(1 << 20))
    runtime_directory.check_room(directory, scratch=True)


def test_scratch_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    place = tmp_path / "scratch"
    runtime_directory.make_scratch(place)
    (place / "old").touch()
    runtime_directory.make_scratch(place)
    assert list(place.iterdir()) == []
    assert place.stat().st_mode & 0o777 == 0o700


def test_scratch_is_not_made_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "scratch").symlink_to(tmp_path / "precious")
    with pytest.raises(HostError, match="is a symbolic link"):
        runtime_directory.make_scratch(tmp_path / "scratch")
    assert (tmp_path / "precious").is_dir()


def test_remove_is_content_when_nothing_is_there(tmp_path: Path) -> None:
    runtime_directory.remove(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_errno_has_its_words() -> None:
    assert (
        runtime_directory.host_error("do it", OSError(errno.EIO, "")).message
        == "cannot do it: Input/output error"
    )


def test_a_file_lock_is_made_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        locks.held(path, what="a turn", deadline=soon()),
        pytest.raises(DeadlineError, match="a turn"),
        locks.held(path, what="a turn", deadline=Deadline.after(0.02)),
    ):
        pass
    with locks.held(path, what="a turn", deadline=soon()):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_a_process_keeps_is_locked_for_tmpfiles(tmp_path: Path) -> None:
    with runtime_directory.kept_from_cleaning(tmp_path) as fds:
        child = process.start(["cat"], stdin=process.PIPE, pass_fds=fds)
    assert child.stdin is not None
    fd = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert not locks.try_lock(fd)
        child.stdin.close()
        child.wait()
        assert locks.try_lock(fd)
    finally:
        os.close(fd)
