"""`vmdebug trace --on-hit stop`: stops the guest at the first hit, and leaves it to GDB."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from vmdebug.cli import render
from vmdebug.cli.trace_formats import shown
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.debugger.stop import Stop
    from vmdebug.trace.probe import Wanted


def run(
    name: str | None, wanted: Wanted, *, on_hit: str, by: str, timeout: float | None, force: bool
) -> None:
    """Wait for the first hit with GDB's breakpoints, print it, and leave the guest stopped there.

    At a terminal, GDB continues there. Only GDB can stop a CPU at an instruction, on every QEMU.

    Args:
        name: The VM; None for the only one.
        wanted: The trace.
        on_hit: "stop".
        by: The collector that the user wants.
        timeout: Seconds to wait for the hit; None for no limit.
        force: Whether to accept symbols of another build.

    Raises:
        UsageError: `on_hit` is nothing else, or the trace wants what does not go with it.
        DeadlineError: there was no hit in time.
        VmdebugError: GDB cannot be attached, or there is no such place.
    """
    if on_hit != "stop":
        raise UsageError(f"--on-hit {on_hit!r} is neither 'print' nor 'stop'", hint="give one of them")
    if by == "plugin":
        raise UsageError("--on-hit stop needs GDB, and --by plugin excludes it", hint="leave --by out")
    if wanted.ret or wanted.count_only or wanted.until or wanted.callees:
        raise UsageError("--on-hit stop only prints the first hit", hint="leave out the other options")
    from vmdebug import session

    with session.attach(name, force=force) as attached:
        attached.vm.check_alive("trace")
        render.tell("GDB collects: only GDB stops the guest at a hit")
        with render.step(render.SYMBOLS):
            gdb = attached.gdb
        made = {gdb.breakpoint(each.where, when=wanted.when).number: each for each in wanted.probes}
        render.tell("waiting for a hit; Ctrl-C ends it")
        stop = gdb.cont(timeout=timeout if timeout is not None else threading.TIMEOUT_MAX)
        found = made.get(stop.breakpoint.number) if stop.breakpoint is not None else None
        _put(stop, found.args if found is not None else ())
        machine = attached.vm.name
        gdb.close(resume=False)
    if sys.stdin.isatty() and sys.stdout.isatty():
        from vmdebug.cli import main

        main(["attach", machine])
    render.tell(f"{machine} is stopped there: vmdebug attach {machine}")


def _put(stop: Stop, args: tuple[str, ...]) -> None:
    frame = stop.frame
    values = " ".join(f"{each}={shown(frame.evaluate(each).to_python_())}" for each in args)
    render.put(f"{frame.function}  {values}".rstrip())
    for level, each in enumerate(stop.backtrace()):
        place = f" at {each.file}:{each.line}" if each.file else ""
        render.put(f"{'':4}#{level:<3}{each.function or hex(each.pc)}{place}")
