"""Records a crash by the use of freed memory, and goes back to who freed it. Its argument is bugs.ko.

Without KASAN, slub_debug=P makes the use of freed memory visible: its bytes are 0x6b.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import vmdebug

POISON = 0x6B6B6B6B6B6B6B6B


def main(module: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        recording = Path(directory) / "use.vmdrec"
        with vmdebug.start("builtin", module=module, append="slub_debug=P,bugs", record=recording) as session:
            for word in ("open", "use", "close"):
                session.exec(f"echo {word} >/proc/bugs", check=True, timeout=240)
            session.exec("(echo use >/proc/bugs)")  # an oops ends the program that writes
        explain(recording)


def explain(recording: Path) -> None:
    with vmdebug.replay(recording, to="failure") as session:
        print(f"the crash: {session.position.describe()}")
        gdb = session.gdb
        gdb.load_modules()
        freed = int(gdb.evaluate("bugs_session"))
        assert int(gdb.evaluate("bugs_session->handler")) == POISON
        gdb.breakpoint("kmem_cache_free", when=f"(unsigned long) x == {freed:#x}")
        stop = gdb.back()
        print(f"bugs_session ({freed:#x}) was freed at instruction {session.position.icount}:")
        print(stop.backtrace())


if __name__ == "__main__":
    main(sys.argv[1])
