"""Check a guest: it stops in start_kernel and boots to a shell."""

from __future__ import annotations

from vmdebug.session import DebugSession


def main(session: DebugSession) -> None:
    """Stop a halted guest in start_kernel, let it boot, and print its kernel release."""
    gdb = session.gdb
    breakpoint_ = gdb.breakpoint("start_kernel")
    stop = gdb.cont(timeout=120)
    if stop.frame.function != "start_kernel":
        raise SystemExit(f"stopped in {stop.frame.function}, not in start_kernel")
    print(f"{stop.reason} at {stop.frame.function}, {stop.frame.file}:{stop.frame.line}")
    breakpoint_.delete()
    gdb.cont(wait=False)
    print(session.exec("uname -r", timeout=600, check=True).stdout.strip())
