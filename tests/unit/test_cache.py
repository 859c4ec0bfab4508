import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.unit import cli_doubles
from vmdebug import cache, filecache
from vmdebug.cli import doctor, facts
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, HostError
from vmdebug.progress import Step, silent


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_it_is_where_xdg_says(tmp_path: Path) -> None:
    assert cache.directory("kernel") == tmp_path / "cache/vmdebug/kernel"


def test_a_written_file_is_whole_and_alone(tmp_path: Path) -> None:
    path = cache.directory("x") / "file"
    cache.write(path, b"one")
    cache.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    path = cache.directory("x") / "file"
    with pytest.raises(HostError, match="not enough space") as caught:
        cache.write(path, b"data")
    assert "XDG_CACHE_HOME" in caught.value.hint
    assert list(path.parent.iterdir()) == []


def test_not_ours_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot write to"):
        cache.write(tmp_path / "file/inside", b"")


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for age, name in enumerate(("new.x", "newer.y", "older.x", "oldest.x")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (100 - age, 100 - age))
    cache.keep_newest(tmp_path, "*.x", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.x", "newer.y", "older.x"]


def test_what_a_guest_or_a_run_of_tests_may_use_stays(tmp_path: Path) -> None:
    hours = {"now": 0, "today": 20, "long-ago": 1000}
    for name, age in hours.items():
        (tmp_path / f"{name}.dir").mkdir()
        (tmp_path / f"{name}.file").touch()
        for path in tmp_path.glob(f"{name}.*"):
            os.utime(path, 2 * (time.time() - age * 3600,))
    cache.keep_newest(tmp_path, "*", 0)
    assert {path.name for path in tmp_path.iterdir()} == {"now.dir", "now.file", "today.dir"}


def test_what_is_used_becomes_the_newest(tmp_path: Path) -> None:
    assert not cache.used(tmp_path / "file")
    assert not (tmp_path / "file").exists()
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", (1, 1))
    assert cache.used(tmp_path / "file")
    assert cache.touched(tmp_path / "file") > 1e18


def test_space_is_looked_at_before_a_long_step(tmp_path: Path) -> None:
    cache.check_space(tmp_path / "not/there/yet", 1)
    with pytest.raises(HostError, match="not enough space") as caught:
        cache.check_space(tmp_path / "not/there/yet", 1e18)
    assert caught.value.hint.startswith("it needs 1000000000.0 GB")


def test_a_program_that_ran_out_of_space(tmp_path: Path) -> None:
    cache.refuse_full("ld: out of memory", tmp_path, 1e9)
    with pytest.raises(HostError, match="not enough space"):
        cache.refuse_full("ld: final link failed: No space left on device", tmp_path, 1e9)


def test_one_at_a_time() -> None:
    path = cache.directory("kernel") / "key"
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with cache.lock(path, "building", silent, Deadline.after(5)):
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(5)
    told: list[Step] = []

    def report(step: Step) -> None:
        told.append(step)
        leave.set()

    with cache.lock(path, "building", report, Deadline.after(5)):
        pass
    thread.join()
    assert [step.note for step in told] == ["waiting for another process that does it"]


def test_waiting_for_another_ends() -> None:
    path = cache.directory("kernel") / "key"
    with (
        cache.lock(path, "building", silent, Deadline.after(5)),
        pytest.raises(DeadlineError, match="another process that is building"),
        cache.lock(path, "building", silent, Deadline.after(0.05)),
    ):
        pass


@pytest.mark.parametrize("directory", [cache.directory, lambda name: filecache.directory() / name])
def test_a_user_without_a_home_directory_gets_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, directory: Callable[[str], Path]
) -> None:
    homeless(monkeypatch)
    with pytest.raises(HostError, match="has no home directory: HOME is not set") as caught:
        directory("x")
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_doctor_goes_on_without_a_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    homeless(monkeypatch)
    assert "has no home directory" in doctor.cache().found


def test_facts_have_whole_paths_without_a_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    homeless(monkeypatch)
    assert facts.symbols(cli_doubles.KERNEL).startswith("/src/linux/vmlinux")


def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process a user id without an entry in the password file."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
