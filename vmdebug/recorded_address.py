"""Where KASLR has put the kernel of a recording: found once in a replay, and kept in the recording."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmdebug import arch, guest, paths
from vmdebug.errors import MismatchError, StateError
from vmdebug.guest import Kernel
from vmdebug.recording import files
from vmdebug.recording.manifest import Ended
from vmdebug.recording.positions import Line
from vmdebug.vm import kernel_address
from vmdebug.vm.replay_control import Player


def find(
    kernel: Kernel, directory: Path, ended: Ended, player: Player, *, lines: Sequence[Line], end: int
) -> int | None:
    """Return by how many bytes KASLR has moved the kernel of a recording.

    Where the kernel is not mapped yet, it cannot be found: then the replay goes to later positions, and back.

    Args:
        kernel: The kernel, which chooses its own address.
        directory: The recording.
        ended: Its end; it has the distance from the first replay on.
        player: Moves the replay.
        lines: The lines of its console.
        end: Its last position.

    Returns:
        The distance; None if there are no symbols, or no kernel runs in the recording.

    Raises:
        VmdebugError: see `Player.goto`.
    """
    if kernel.vmlinux is None or ended.slide is not None:
        return ended.slide
    here = player.icount
    found = _at(kernel, kernel.vmlinux, player)
    for place in _places(lines, here, end):
        if found is not None:
            break
        player.goto(place)
        found = _at(kernel, kernel.vmlinux, player)
    player.goto(here)
    if found is not None:
        with contextlib.suppress(OSError):  # the next replay finds it again
            data = guest.encode(msgspec.structs.replace(ended, slide=found))
            paths.write_atomically(files.ended(directory), data)
    return found


def _places(lines: Sequence[Line], here: int, end: int) -> list[int]:
    """Return positions after the present one: a kernel that prints is mapped."""
    known = [lines[number].latest for number in (0, len(lines) // 2, -1)] if lines else []
    return sorted({min(each, end) for each in (*known, end) if each > here})


def _at(kernel: Kernel, vmlinux: Path, player: Player) -> int | None:
    row = arch.by_name(kernel.arch)
    with contextlib.suppress(StateError, MismatchError):  # not mapped, or in the firmware
        return kernel_address.slide(player.ask, vmlinux, row, kaslr=True, force=False)
    return None
