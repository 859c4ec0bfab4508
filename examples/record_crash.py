"""Records a guest that panics, replays it twice, and asks who enabled the panic: make demo-record."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import vmdebug

CAUSE = "panic_on_oops"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        recording = Path(directory) / "crash.vmdrec"
        with vmdebug.start("builtin", record=recording) as session:
            session.exec("cat /proc/uptime", timeout=120)
            session.exec(f"echo 1 >/proc/sys/kernel/{CAUSE}")
            session.exec("dd if=/dev/zero of=/dev/null bs=1 count=20000")
            with contextlib.suppress(vmdebug.GuestDiedError):
                session.exec("echo c >/proc/sysrq-trigger")
        print(f"recorded {recording.name}")
        found = [replayed(recording) for _ in range(2)]
    assert found[0] == found[1], found
    print("both replays are equal")


def replayed(recording: Path) -> tuple[int, int, int]:
    """Return the position of the failure, of the write, and the address that wrote."""
    with vmdebug.replay(recording, to="failure") as session:
        failed = session.position
        print(f"\nthe failure: {failed.describe()}")
        print(session.gdb.backtrace())
        write = session.gdb.last_write(CAUSE)
        assert write is not None
        print(f"{CAUSE} was {write.old}, and {write.function} ({write.place}) wrote {write.new}")
        return failed.icount, write.position, write.pc


if __name__ == "__main__":
    main()
