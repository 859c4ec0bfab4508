"""A full disk is named with its path and its file system, and stops as little as possible."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from tests.unit import cli_doubles
from vmdebug import cache, cli, paths
from vmdebug.attach_lock import Holder, holder
from vmdebug.debugger.ownership import VmOwner
from vmdebug.errors import HostError
from vmdebug.postmortem import Report, Section
from vmdebug.vm import runtime_directory


def no_space(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file system is full."""
    sizes = os.statvfs_result((4096, 4096, 768, 0, 0, 10, 0, 0, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda _: sizes)


def test_a_file_system_is_named_by_its_mount_point(tmp_path: Path) -> None:
    assert paths.file_system(Path("/proc/self/nowhere")).startswith("the file system /proc has 0 of 0 MiB")
    assert not paths.full(Path("/proc"))
    assert not paths.full(tmp_path / "not" / "there")


def test_an_error_of_write_that_names_no_file_gets_the_full_file_systems(
    full: None, runtime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vmdebug.vm.find", no_space)
    assert cli.status_of(["status", "v"]) == 3
    said = capsys.readouterr().err
    assert "No space left on device; the file system /" in said
    assert "has 0 of 3 MiB free" in said


def test_errors_of_the_run_directory_and_the_cache_name_the_file_system(full: None, tmp_path: Path) -> None:
    error = runtime_directory.host_error("write /run/x", OSError(errno.ENOSPC, ""))
    assert error.message.startswith("cannot write /run/x: No space left on device; the file system /")
    with pytest.raises(HostError, match=r"not enough space for .*: the file system / has 0 of 3 MiB"):
        cache.refuse_full("ld: No space left on device", Path("/nowhere"), 1e9)


def test_a_file_that_cannot_be_written_is_named_with_its_full_file_system(full: None, tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x"))
    assert paths.failure(error).startswith(f"No space left on device: {tmp_path}/x; the file system /")
    assert paths.failure(PermissionError(errno.EACCES, "denied", "/x")) == "denied: /x"
    assert paths.failure(OSError(errno.EIO, "bad")) == "bad"


def test_a_report_that_cannot_be_written_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(OSError, match="No space left") as caught:
        Report((Section("guest", "x"),)).write(tmp_path)
    assert caught.value.filename == str(tmp_path / "guest.txt")


def test_a_log_on_a_full_disk_says_that_lines_may_be_missing(
    full: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    machine = cli_doubles.machine("v", directory=tmp_path)
    machine.rundir.path.mkdir()
    machine.rundir.console_log.write_text("Linux version 6.1\n")
    monkeypatch.setattr("vmdebug.vm.find", lambda _: machine)
    assert cli.status_of(["log", "v"]) == 0
    out, err = capsysbinary.readouterr()
    assert out == b"Linux version 6.1\n"
    assert b"note: the log may lack lines" in err


def test_a_debugger_attaches_although_its_pid_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.pwrite", no_space)
    with VmOwner.claim(tmp_path / "attach.lock", "v"):
        assert holder(tmp_path / "attach.lock") == Holder()
