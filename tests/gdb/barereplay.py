"""A replay of the guest without a kernel: as quick to make as the guest itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.gdb.bareguest import soon
from vmdebug import process
from vmdebug.process import ProcessRef
from vmdebug.vm import qmp
from vmdebug.vm.qmp import Qmp
from vmdebug.vm.replay_control import Player

END = 8_000_000
"""Where the recording ends, as `replay.json` says; QEMU has recorded more. `main` begins at 5.7 million."""

SNAPSHOTS = (0, 2_000_000, 4_000_000, 6_000_000)

FACTS: Mapping[str, object] = {"end": END, "failure": None}
LINES = ([1_500_000, 1_500_000, 1.5, "half way", True], [2_500_000, 2_500_000, 2.5, "later", True])


class BareReplay:
    """QEMU with the recorded program, stopped at the end of the recording, with snapshots on the way.

    Its directory has what GDB finds in the run directory of a replay.
    """

    def __init__(self, program: Path, directory: Path) -> None:
        self.endpoint = directory / "gdb"
        recording = directory / "r"
        recording.mkdir()
        (recording / "console.out").touch()
        (directory / "console.log").touch()
        facts = {**FACTS, "recording": str(recording)}
        (directory / "replay.json").write_text(json.dumps(facts))
        (directory / "lines.json").write_text(json.dumps(LINES))
        _record(program, directory)
        self._directory = directory
        self._child = process.start(_argv(program, directory, "replay"))
        with self.qmp() as control:
            player = Player(control, directory / "console.log", b"", name="bare", end=END, deadline=soon())
            for place in SNAPSHOTS:
                player.run_to(place)
                player.save()
            player.goto(END - 1)

    @contextlib.contextmanager
    def qmp(self) -> Iterator[Qmp]:
        with _connected(self._directory, self._child.pid) as control:
            yield control

    @property
    def position(self) -> int:
        with self.qmp() as control:
            found: int = control.execute("query-replay")["icount"]
            return found

    def close(self) -> None:
        process.end_group(self._child)


def _record(program: Path, directory: Path) -> None:
    child = process.start(_argv(program, directory, "record"))
    try:
        with _connected(directory, child.pid) as control:
            control.execute("cont")
            for _ in soon().pauses("the recording"):
                if control.execute("query-replay")["icount"] > END:
                    break
            control.execute("quit")
        child.wait()
    finally:
        process.end_group(child)


@contextlib.contextmanager
def _connected(directory: Path, pid: int) -> Iterator[Qmp]:
    for _ in soon().pauses("QEMU to listen"):
        with contextlib.suppress(qmp.NoListenerError):
            control = qmp.connect(directory / "control.sock", process=ProcessRef.of(pid), deadline=soon())
            break
    with control:
        yield control


def _argv(program: Path, directory: Path, way: str) -> list[str]:
    return [
        "qemu-system-x86_64",
        *("-S", "-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-m", "32"),
        *("-icount", f"shift=6,rr={way},rrfile={directory}/r/rr.log"),
        *("-global", "apic-common.vapic=off", "-kernel", str(program)),
        *("-chardev", f"socket,id=gdb0,path={directory}/gdb,server=on,wait=off", "-gdb", "chardev:gdb0"),
        *("-chardev", f"socket,id=qmp0,path={directory}/control.sock,server=on,wait=off"),
        *("-qmp", "chardev:qmp0"),
    ]
