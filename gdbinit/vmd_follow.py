"""Steps that follow a task from CPU to CPU.

To GDB a CPU is a thread, and its `finish` and `next` wait on the thread on which they were started. A task
that sleeps meanwhile may wake on another CPU, where GDB ignores it, and the guest keeps running. So these
steps wait for the frame: it is on the task's own stack, which identifies it on any CPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import gdb
import vmd_arch
import vmd_frame
import vmd_function_exits
import vmd_guest
import vmd_kgdb
from vmd_registers import Registers, narrowed


class ReturnBreakpoint(gdb.Breakpoint):
    """A breakpoint at the address to which a task returns in a frame.

    Args:
        pc: The return address.
        frame: The frame to return to.
        awaited: The number of the thread on which GDB itself waits for the return; None if there is none.
        silent: Whether GDB does not report the stop.
    """

    def __init__(self, pc: int, frame: gdb.Frame, *, awaited: int | None, silent: bool) -> None:
        super().__init__(f"*{pc:#x}", internal=True)
        self.silent = silent
        self.stopped = False
        self._frame = vmd_frame.called(frame)
        self._awaited = awaited

    def stop(self) -> bool:
        """Stop if the task has returned to the frame; other tasks run the same code."""
        thread = gdb.selected_thread()
        by_gdb = thread is not None and thread.num == self._awaited
        self.stopped = not by_gdb and vmd_frame.called(gdb.selected_frame()) == self._frame
        return self.stopped


class FollowedStep:
    """The breakpoints of one step; `STEP` is the only instance."""

    def __init__(self) -> None:
        self._breakpoints: list[ReturnBreakpoint] = []
        self._kind: gdb.Type | None = None

    def finish(self, *, silent: bool = False) -> bool:
        """Set a breakpoint at the selected frame's return address.

        Returns:
            Whether `continue` now does what `finish` would; False: use GDB's own `finish`.

        Raises:
            gdb.GdbError: the frame is the outermost one.
        """
        self.end()
        frame = gdb.selected_frame()
        if vmd_kgdb.on() or frame.type() == gdb.INLINE_FRAME:
            return False  # kgdb's threads are tasks; an inlined function has no return address
        caller = frame.older()
        if caller is None:
            raise gdb.GdbError("finish: this is the outermost frame, it has no caller")
        self._kind = vmd_function_exits.return_type(vmd_function_exits.functions(frame.pc())[1])
        self._breakpoints = [ReturnBreakpoint(caller.pc(), caller, awaited=None, silent=silent)]
        return True

    def next(self, *, silent: bool = False) -> bool:
        """Set breakpoints where calls in the current line return; return whether there are any."""
        self.end()
        thread = gdb.selected_thread()
        if vmd_kgdb.on() or thread is None or len(vmd_guest.cpus()) == 1:
            return False
        frame = gdb.newest_frame()
        self._breakpoints = [
            ReturnBreakpoint(pc, frame, awaited=thread.num, silent=silent) for pc in set(_returns(frame))
        ]
        return bool(self._breakpoints)

    def end(self) -> bool:
        """Delete the breakpoints; return whether one of them stopped the guest."""
        stopped = any(each.stopped for each in self._breakpoints)
        for each in self._breakpoints:
            if each.is_valid():
                each.delete()
        self._breakpoints = []
        return stopped

    def returned(self) -> gdb.Value | None:
        """Return the value that the finished function returned; None if no register holds it."""
        if self._kind is None:
            return None
        return gdb.Value(narrowed(Registers()[vmd_arch.current().result], self._kind)).cast(self._kind)


STEP = FollowedStep()


def _returns(frame: gdb.Frame) -> Iterator[int]:
    """Return the return addresses of the calls in a frame's current line, which may have several ranges."""
    here = frame.find_sal()
    if here.symtab is None:
        return
    calls = vmd_arch.current().calls
    starts = {frame.pc(), *(each.pc for each in here.symtab.linetable().line(here.line) or ())}
    around = vmd_function_exits.blocks(frame.pc())[-1:]
    for start in starts:
        last = gdb.find_pc_line(start).last
        if last is None or not any(block.start <= start < block.end for block in around):
            continue
        for each in frame.architecture().disassemble(start, last):
            if re.match(calls, each["asm"]):
                yield each["addr"] + each["length"]


def follow(how: str) -> dict[str, object]:
    """`-vmd-follow finish|next`: set breakpoints for the next step; returns whether there are any."""
    followed = STEP.finish() if how == "finish" else STEP.next()
    return {"followed": f"{followed:d}"}


def end_follow() -> dict[str, object]:
    """`-vmd-end-follow`: delete them; returns whether one stopped the guest, and the returned value."""
    stopped = STEP.end()
    value = STEP.returned() if stopped else None
    if value is None:
        return {"stopped": f"{stopped:d}"}
    return {"stopped": "1", "value": value.format_string(), "number": f"${gdb.add_history(value)}"}
