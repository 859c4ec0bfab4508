"""Stop a guest where it opens a file, and print which one: `vmdebug run open_args.py --name NAME`."""

from __future__ import annotations

from vmdebug.session import DebugSession


def main(session: DebugSession) -> None:
    """Break in the kernel's openat(2) while the guest's shell reads a file."""
    session.exec("true")  # waits until it has booted
    gdb = session.gdb  # attaches, which stops the guest
    gdb.breakpoint("do_sys_openat2")
    session.console.sendline("cat /etc/passwd")
    stop = gdb.cont(timeout=60)

    frame = stop.frame
    print(f"{stop.reason} at {frame.function}, {frame.file}:{frame.line}")
    print(f"  dfd      = {int(frame.arg('dfd'))}")
    print(f"  filename = {frame.arg('filename').string_()!r}")
    print(f"  flags    = {int(frame.arg('how').flags):#o}")
    print(stop.backtrace(limit=9))
