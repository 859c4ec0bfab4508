"""Stop a guest where it opens a file, and say which one: `vmdebug run open_args.py`."""

from __future__ import annotations

from vmdebug.session import DebugSession


def main(session: DebugSession) -> None:
    """Break on openat(2)'s work in the kernel while the guest's shell reads a file."""
    session.exec("true")  # it has booted
    gdb = session.gdb  # attached: the guest stands still
    gdb.breakpoint("do_sys_openat2")
    session.console.sendline("cat /etc/passwd")
    stop = gdb.cont(timeout=60)

    frame = stop.frame
    print(f"stopped: {stop.reason} in {frame.function} at {frame.file}:{frame.line}")
    for name in ("dfd", "filename", "how"):
        print(f"  {name:9} {frame.evaluate(name)}")
    print(f"  flags     {frame.evaluate('how->flags')}")
    for caller in stop.backtrace():
        print(f"  #{caller.level} {caller.function} {caller.file}:{caller.line}")
