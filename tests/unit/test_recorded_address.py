"""Where KASLR has put the kernel of a recording: found at a position where it runs, and found once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from vmdebug import recorded_address
from vmdebug.errors import StateError
from vmdebug.guest import Kernel
from vmdebug.recording import files, manifest
from vmdebug.recording.manifest import Ended
from vmdebug.recording.positions import Line
from vmdebug.vm.replay_control import Player

KERNEL = Kernel(image=Path("/k"), origin="a test", arch="x86_64", vmlinux=Path("/vmlinux"))
ENDED = Ended(icount=1000, seconds=1.0, complete=True, log_bytes=1, console_bytes=1, sha256="")
LINES = (Line(300, 310, 0.5, "Linux"), Line(600, 600, 0.7, "a"), Line(900, 900, 1.0, "b"))
SLIDE = 0x1E00000


class Replay:
    """A replay whose kernel is mapped from a position on."""

    def __init__(self, mapped: int, here: int) -> None:
        self.mapped, self.icount = mapped, here
        self.visited: list[int] = []

    def goto(self, icount: int) -> None:
        self.icount = icount
        self.visited.append(icount)

    def ask(self, command: str, /, **_: object) -> Any:
        raise AssertionError(command)


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    def slide(ask: Any, *_: object, **__: object) -> int:
        replay = ask.__self__
        if replay.icount < replay.mapped:
            raise StateError("not yet")
        return SLIDE

    monkeypatch.setattr("vmdebug.vm.kernel_address.slide", slide)


def find(replay: Replay, directory: Path, ended: Ended = ENDED, kernel: Kernel = KERNEL) -> int | None:
    player = cast("Player", replay)
    return recorded_address.find(kernel, directory, ended, player, lines=LINES, end=999)


@pytest.mark.parametrize(
    ("mapped", "here", "visited"),
    [(0, 500, [500]), (100, 0, [310, 0]), (700, 0, [310, 600, 900, 0]), (950, 650, [900, 999, 650])],
)
def test_it_is_found_where_the_kernel_is_mapped_and_the_replay_comes_back(
    tmp_path: Path, mapped: int, here: int, visited: list[int]
) -> None:
    replay = Replay(mapped, here)
    assert find(replay, tmp_path) == SLIDE
    assert replay.visited == visited
    ended = manifest.read_ended(files.ended(tmp_path))
    assert ended is not None
    assert ended.slide == SLIDE
    assert find(Replay(mapped, here), tmp_path, ended) == SLIDE


def test_a_recording_that_knows_it_is_not_searched(tmp_path: Path) -> None:
    replay = Replay(2000, 0)
    ended = Ended(
        icount=1000, seconds=1.0, complete=True, log_bytes=1, console_bytes=1, sha256="", slide=SLIDE
    )
    assert find(replay, tmp_path, ended) == SLIDE
    assert not replay.visited


def test_without_a_kernel_that_runs_there_is_none(tmp_path: Path) -> None:
    replay = Replay(2000, 7)
    assert find(replay, tmp_path) is None
    assert replay.icount == 7
    assert not files.ended(tmp_path).exists()
    bare = Kernel(image=Path("/k"), origin="a test", arch="x86_64")
    assert find(Replay(0, 0), tmp_path, kernel=bare) is None
