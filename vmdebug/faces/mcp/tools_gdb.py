"""The tools of the debugger: breakpoints, running, stacks, values."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from vmdebug.debugger import stop as stops
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.runstate import State
from vmdebug.debugger.value import Value
from vmdebug.errors import GdbError, UsageError
from vmdebug.faces.mcp import described, results
from vmdebug.faces.mcp.calls import Call
from vmdebug.faces.mcp.tools_vm import Seconds, VmName

Cpu = Annotated[int | None, Field(description="Number of the CPU; none: the one that stopped.", ge=0)]
Level = Annotated[int, Field(description="The frame's level in `backtrace`.", ge=0)]
FRAMES = 64
"""Number of frames that a stack shows unless more are asked for."""


def attach(call: Call, vm: VmName = None) -> results.Run:
    """Attach GDB, which stops the guest, and prove that the symbols are those of its kernel.

    The other tools attach by themselves; `detach` lets the guest run without GDB.
    """
    with call.machines.using(vm, call.tool) as held:
        gdb = held.session.gdb
        if not gdb.stopped:
            return results.Run(running=True)
        return results.Run(running=False, stop=_here(gdb))


def detach(call: Call, vm: VmName = None) -> results.Done:
    """Remove the breakpoints, detach GDB and let the guest run."""
    return results.Done(f"detached from {call.machines.detach(vm)}; its guest runs")


def breakpoint_(
    call: Call,
    action: Annotated[
        Literal["set", "watch", "panics", "list", "delete"],
        Field(
            description="set: a breakpoint at `where`. watch: stop when the expression `where` changes."
            " panics: stop when the kernel panics or oopses, before it prints. delete: `number`, or all."
        ),
    ],
    where: Annotated[
        str, Field(description="A function, file:line, *address; with watch, an expression in memory.")
    ] = "",
    condition: Annotated[
        str, Field(description="Stop only where this C expression is true, in the scope of the place.")
    ] = "",
    number: Annotated[int | None, Field(description="The breakpoint to delete.")] = None,
    vm: VmName = None,
    *,
    temporary: Annotated[bool, Field(description="Delete it at its first stop.")] = False,
    hardware: Annotated[bool, Field(description="Use a debug register of the CPU.")] = False,
    pending: Annotated[bool, Field(description="`where` may be in a module that is not loaded yet.")] = False,
) -> results.Breakpoints:
    """Set, list or delete breakpoints. A running guest continues to run."""
    if (action in ("set", "watch")) != bool(where):
        raise UsageError(
            f"breakpoint: {action} with where={where!r}",
            hint="`set` and `watch` take `where`, the others do not",
        )
    with call.machines.using(vm, call.tool) as held:
        gdb = held.session.running_gdb()
        changed: list[int] = []
        match action:
            case "set":
                made = gdb.breakpoint(
                    where, when=condition, temporary=temporary, hardware=hardware, pending=pending
                )
                changed = [made.number]
            case "watch":
                changed = [gdb.watchpoint(where).number]
            case "panics":
                changed = [each.number for each in gdb.catch_panic().breakpoints]
            case "delete":
                changed = _delete(gdb, number)
        return described.breakpoints(gdb, changed)


def _delete(gdb: Gdb, number: int | None) -> list[int]:
    found = [each for each in gdb.breakpoints() if number in (None, each.number)]
    if number is not None and not found:
        there = ", ".join(str(each.number) for each in gdb.breakpoints()) or "none"
        raise UsageError(f"there is no breakpoint {number}", hint=f"there are: {there}")
    for each in found:
        each.delete()
    return [each.number for each in found]


def continue_(
    call: Call,
    vm: VmName = None,
    timeout: Annotated[float, Field(description="Seconds to wait for a stop.", gt=0, le=86400)] = 60.0,
    *,
    wait: Annotated[bool, Field(description="Wait for the next stop; else return at once.")] = True,
) -> results.Run:
    """Let the guest run, and wait for its next stop: a breakpoint, a watchpoint, a panic.

    When the time has passed the call fails, and the guest still runs: `continue` waits again, `interrupt`
    stops it. A cancelled call stops the guest.
    """
    with call.machines.using(vm, call.tool) as held:
        gdb = held.session.gdb
        if not wait:
            if gdb.stopped:
                gdb.resume()
            return results.Run(running=True)
        with call.interrupted_by(held.session.vm.pause, "waiting for the guest to stop"):
            found = gdb.cont(timeout=timeout) if gdb.stopped else gdb.wait_stop(timeout=timeout)
        return results.Run(running=False, stop=described.stop(found, gdb))


def interrupt(call: Call, vm: VmName = None) -> results.Run:
    """Stop the running guest; also ends a `continue` that waits, which then returns the stop."""
    held = call.machines.find(vm)
    if held.turn.locked() and held.session.attached is not None:
        held.session.vm.pause()
        return results.Run(running=False)
    with call.machines.using(vm, call.tool):
        gdb = held.session.gdb
        if gdb.state is State.RUNNING:
            return results.Run(running=False, stop=described.stop(gdb.interrupt(), gdb))
        return results.Run(running=False, stop=_here(gdb))


def step(call: Call, vm: VmName = None, timeout: Seconds = 60.0) -> results.Run:
    """Run to the next source line, into calls; follows the task if it sleeps and wakes on another CPU."""
    return _run(call, vm, lambda gdb: gdb.step(timeout=timeout))


def next_(call: Call, vm: VmName = None, timeout: Seconds = 60.0) -> results.Run:
    """Run to the next source line, over calls; follows the task if it sleeps and wakes on another CPU."""
    return _run(call, vm, lambda gdb: gdb.next(timeout=timeout))


def finish(call: Call, vm: VmName = None, timeout: Seconds = 60.0) -> results.Run:
    """Run until the present function returns; `return_value` in the result is what it returned."""
    return _run(call, vm, lambda gdb: gdb.finish(timeout=timeout))


def _run(call: Call, vm: str | None, run: Callable[[Gdb], stops.Stop]) -> results.Run:
    with call.machines.using(vm, call.tool) as held:
        gdb = held.session.gdb
        with call.interrupted_by(held.session.vm.pause, f"waiting for the end of {call.tool}"):
            found = run(gdb)
        return results.Run(running=False, stop=described.stop(found, gdb))


def backtrace(
    call: Call,
    vm: VmName = None,
    cpu: Cpu = None,
    limit: Annotated[int, Field(description="Number of frames.", ge=1, le=1000)] = FRAMES,
    *,
    all_cpus: Annotated[bool, Field(description="The task and the stack of each CPU, as text.")] = False,
) -> results.Stack:
    """Return the stack of a CPU of the stopped guest, the innermost frame first."""
    with call.machines.using(vm, call.tool) as held:
        gdb = held.session.gdb
        if all_cpus:
            return results.Stack(text=gdb.backtraces(limit=limit))
        return results.Stack(tuple(map(described.frame, gdb.backtrace(cpu, limit=limit))))


def evaluate(
    call: Call,
    expression: Annotated[
        str, Field(description="A C expression: `*filename`, `file->f_path.dentry->d_iname`, `$rip`.")
    ],
    vm: VmName = None,
    cpu: Cpu = None,
    frame: Level = 0,
) -> results.Value:
    """Return the value of an expression in a frame of the stopped guest.

    An assignment changes the guest, and a call runs a function in it.
    """
    with call.machines.using(vm, call.tool) as held:
        gdb = held.session.gdb
        at = gdb.select(cpu, frame)
        value = gdb.evaluate(expression, frame=at)
        return results.Value(
            expression=expression,
            type=value.type_,
            value=gdb.printed(expression, frame=at),
            address=None if value.address_ is None else hex(value.address_),
            text=_text(value),
        )


def variables(call: Call, vm: VmName = None, cpu: Cpu = None, frame: Level = 0) -> results.Variables:
    """Return the arguments and local variables of a frame of the stopped guest."""
    with call.machines.using(vm, call.tool) as held:
        gdb = held.session.gdb
        at = gdb.select(cpu, frame)
        return results.Variables(
            described.frame(at), _listed(gdb.console("info args")), _listed(gdb.console("info locals"))
        )


def _here(gdb: Gdb) -> results.Stop:
    """Return where the guest is stopped, if no call has reported the stop."""
    at = gdb.frame()
    found = stops.Stop(stops.ATTACHED, at.thread, at)
    return described.stop(found, gdb)


_TEXT = re.compile(r"(?:const |volatile )*(?:(?:un)?signed )?char (?:\*(?:const|volatile)?|\[\d*\])")


def _text(value: Value) -> str | None:
    """Return what a `char *` points to, or what a `char []` contains; None for another type."""
    if _TEXT.fullmatch(value.type_):
        with contextlib.suppress(GdbError):  # it points to memory that is not mapped
            return value.string_()
    return None


def _listed(text: str) -> tuple[results.Variable, ...]:
    """Return the variables of `info locals`; further lines of a value are indented or close a brace."""
    found: list[results.Variable] = []
    for line in text.splitlines():
        name, equals, value = line.partition(" = ")
        if equals and name.isidentifier():
            found.append(results.Variable(name, value))
        elif found:
            found[-1] = results.Variable(found[-1].name, f"{found[-1].value}\n{line}")
    return tuple(found)
