"""Recordings of newer QEMUs: the same tests as with the distribution's, and what takes longer."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.accel import SECONDS
from tests.guest.test_recording import (
    recorded,
    replay,
    test_replays_are_equal_and_go_anywhere,
    test_the_command_line,
)
from vmdebug import session
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
