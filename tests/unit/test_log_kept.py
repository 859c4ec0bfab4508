"""A log whose oldest part was removed: every reader goes on after it, and at the same positions."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import pytest

from tests.unit import cli_doubles
from tests.unit.serial_guest import line_guest
from vmdebug import cli, process
from vmdebug.channel.log import kept
from vmdebug.channel.log.watcher import Watcher
from vmdebug.channel.watch import Watch
from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError

LINE = b"[    1.000000] a line of the guest's\r\n"
MANY = 4000
PANIC = b"[    2.000000] Kernel panic - not syncing: at last\r\n"
HOLE = 128 << 10


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with a hole of HOLE bytes at its start, in the middle of a line."""
    path = tmp_path / "console.log"
    path.write_bytes(MANY * LINE)
    punch(path)
    return path


def punch(path: Path) -> None:
    """Remove the start of a file, as the guardian does."""
    process.run(["fallocate", "--punch-hole", f"--length={HOLE}", path], deadline=Deadline.after(60))


def whole_lines() -> bytes:
    return (MANY - (HOLE // len(LINE) + 1)) * LINE


def test_the_rest_of_a_log_begins_with_a_line(log: Path) -> None:
    dropped, data = kept.read(log)
    assert data == whole_lines()
    assert dropped + len(data) == log.stat().st_size


@pytest.mark.parametrize("text", [b"", b"\0\0no newline", 3 * LINE])
def test_a_log_without_a_hole_is_whole(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(text)
    assert kept.read(tmp_path / "log") == (0, text)


def test_a_reader_goes_on_after_what_was_removed_before_it(log: Path) -> None:
    with log.open("rb", buffering=0) as stream:
        assert stream.read(len(LINE)) == bytes(len(LINE))
        found = b""
        while data := kept.read_next(stream.fileno(), 1000):
            found += data
    assert found.endswith(whole_lines())
    assert b"\0" not in found


def test_trouble_is_found_behind_a_hole_and_after_a_later_one(log: Path) -> None:
    with Watcher(log) as watcher, log.open("ab", buffering=0) as stream:
        assert watcher.poll() == ()
        stream.write(MANY * LINE + b"[    2.0] BUG: x\r\n")
        punch(log)
        (trouble,) = watcher.wait(Deadline.after(30))
    assert trouble.headline == "BUG: x"


def test_a_wait_sees_a_death_behind_a_hole(log: Path) -> None:
    watch = Watch(log)
    reading, writing = os.pipe()
    try:
        watch.wait({reading: select.POLLIN}, 0.2, "a test")
        with log.open("ab", buffering=0) as stream:
            stream.write(MANY * LINE + PANIC)
        punch(log)
        with pytest.raises(GuestDiedError, match="not syncing: at last"):
            watch.wait({reading: select.POLLIN}, 30, "a test")
    finally:
        watch.close()
        os.close(reading)
        os.close(writing)


def test_a_sparse_log_of_a_terabyte_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    machine = cli_doubles.machine("v", directory=tmp_path)
    machine.rundir.path.mkdir()
    with machine.rundir.console_log.open("wb") as stream:
        stream.seek(1 << 40)
        stream.write(b"the end of a line\n" + LINE)
    monkeypatch.setattr("vmdebug.vm.find", lambda _: machine)
    assert cli.status_of(["log", "v"]) == 0
    out, err = capsysbinary.readouterr()
    assert out == LINE
    assert b"note: 1,099,511,627,794 older bytes were removed: the log keeps the last 16 MiB" in err


def test_log_f_begins_after_the_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = cli_doubles.machine("v", directory=tmp_path)
    machine.rundir.path.mkdir()
    machine.rundir.console_log.write_bytes(MANY * LINE)
    punch(machine.rundir.console_log)
    became: list[list[Any]] = []
    monkeypatch.setattr("vmdebug.vm.find", lambda _: machine)
    monkeypatch.setattr("vmdebug.process.replace", became.append)
    assert cli.status_of(["log", "v", "-f"]) == 0
    start = MANY * len(LINE) - len(whole_lines())
    assert became[0][1:3] == ["-c", f"+{start + 1}"]
    assert f"note: {start:,} older bytes were removed" in capsys.readouterr().err


def test_a_console_finds_a_death_at_the_end_of_a_log_of_a_terabyte() -> None:
    with line_guest() as guest:
        with (guest.directory / "log").open("r+b") as stream:
            stream.seek(1 << 40)
            stream.write(b"\n" + PANIC)
        with guest.console() as console, pytest.raises(GuestDiedError, match="not syncing: at last"):
            console.expect("never", timeout=30)
