"""Recordings of newer QEMUs: the same tests as with the distribution's, and what takes longer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fixtures.accel import SECONDS
from tests.guest.test_recording import (
    recorded,
    replay,
    test_replays_are_equal_and_go_anywhere,
    test_the_command_line,
)
from vmdebug import process, session
from vmdebug.deadline import Deadline
from vmdebug.recording import ending, event_log, files

__all__ = ["recorded", "test_replays_are_equal_and_go_anywhere", "test_the_command_line"]


def test_a_killed_qemu_leaves_a_recording_up_to_its_last_moments(tmp_path: Path) -> None:
    with session.start("builtin", name="killed", record=tmp_path / "k", timeout=SECONDS) as guest:
        guest.exec("true", timeout=SECONDS)
        guest.vm.stop(force=True)
    ended = ending.settle(tmp_path / "k.vmdrec")
    assert not ended.complete
    assert event_log.read(files.log(tmp_path / "k.vmdrec")).complete
    with replay(tmp_path / "k.vmdrec", "end") as again:
        assert again.position.icount == ended.icount - 1
        log = again.vm.rundir.console_log.read_bytes()
        assert files.console(tmp_path / "k.vmdrec").read_bytes().startswith(log)
        assert b"vmdebug: guest ready" in log


def test_recordings_of_failed_tests_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "test_it.py").write_text(
        "def test_passes(vm):\n    vm.exec('true', check=True)\n"
        "def test_fails(vm):\n    assert vm.exec('echo 1').stdout == '2\\n'\n"
    )
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--vmdebug-record", "on-failure"]
    words += ["--vmdebug-artifacts", str(tmp_path / "kept"), str(tmp_path / "test_it.py")]
    done = process.run(words, deadline=Deadline.after(3 * SECONDS), check=False, cwd=tmp_path)
    assert "1 failed, 1 passed" in done.stdout
    (kept,) = (tmp_path / "kept").glob("*/guest.vmdrec")
    assert f"vmdebug replay {kept}" in done.stdout
    assert ending.settle(kept).complete
    assert not list((tmp_path / "data/vmdebug/recordings").iterdir())
