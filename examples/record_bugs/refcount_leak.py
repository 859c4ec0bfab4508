"""Records a warning about a reference that is left, and goes back to who took it. Its argument is bugs.ko."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import vmdebug
from vmdebug import DebugSession

COUNT = "bugs_object.users.refs.counter"


def main(module: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        recording = Path(directory) / "leak.vmdrec"
        with vmdebug.start("builtin", module=module, record=recording) as session:
            for word in ("get", "put", "peek", "get", "put", "end"):
                session.exec(f"echo {word} >/proc/bugs", timeout=240)
        with vmdebug.replay(recording, to="failure") as session:
            print(f"the warning: {session.position.describe()}")
            explain(session)


def explain(session: DebugSession) -> None:
    """Go back from write to write: a reference that is not given back has no partner."""
    gdb = session.gdb
    gdb.load_modules()
    given = 0
    while (write := gdb.last_write(COUNT)) is not None:
        if write.old == "0":
            print(f"instruction {write.position}: the count begins")
            return
        function = next(frame.function for frame in write.backtrace if frame.function.endswith("_object"))
        print(f"instruction {write.position}: {write.old} -> {write.new} by {function}")
        if int(write.new) < int(write.old):
            given += 1
        elif given:
            given -= 1
        else:
            print(f"{function} took a reference that nobody gave back:\n{write.backtrace}")


if __name__ == "__main__":
    main(sys.argv[1])
