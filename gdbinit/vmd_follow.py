"""Steps that follow a task from CPU to CPU.

GDB has `finish` and `next` wait on the CPU, a thread to it, that they were given on. A task that sleeps
meanwhile wakes on whichever CPU is free; GDB passes over it there, and the guest runs for ever. So what is
waited for here is the frame: it lies on the task's own stack, and GDB tells it by that.
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


class Back(gdb.Breakpoint):
    """Where a task comes back to a frame.

    Args:
        pc: The place in the code.
        frame: The frame.
        but: The number of a thread of GDB's that needs no help; None for none.
        silent: Whether GDB says nothing of the stop.
    """

    def __init__(self, pc: int, frame: gdb.Frame, *, but: int | None, silent: bool) -> None:
        super().__init__(f"*{pc:#x}", internal=True)
        self.silent = silent
        self.came = False
        self._frame = vmd_frame.called(frame)
        self._but = but

    def stop(self) -> bool:
        """Stop if it is that frame; other tasks run the same code."""
        thread = gdb.selected_thread()
        helped = thread is not None and thread.num == self._but
        self.came = not helped and vmd_frame.called(gdb.selected_frame()) == self._frame
        return self.came


class Following:
    """What is planted for one step; `FOLLOWING` is the only one."""

    def __init__(self) -> None:
        self._planted: list[Back] = []
        self._kind: gdb.Type | None = None

    def finish(self, *, silent: bool = False) -> bool:
        """Plant where the selected frame returns to; return whether `continue` does now as `finish` would.

        Raises:
            gdb.GdbError: it returns to nobody.
        """
        self.end()
        frame = gdb.selected_frame()
        if vmd_kgdb.on() or frame.type() == gdb.INLINE_FRAME:
            return False  # kgdb's threads are tasks; what is inlined returns nowhere
        caller = frame.older()
        if caller is None:
            raise gdb.GdbError("finish: this is the outermost frame, which returns to nobody")
        self._kind = vmd_function_exits.return_type(vmd_function_exits.functions(frame.pc())[1])
        self._planted = [Back(caller.pc(), caller, but=None, silent=silent)]
        return True

    def next(self, *, silent: bool = False) -> bool:
        """Plant where the calls of the current line come back on other CPUs; return whether there are any."""
        self.end()
        thread = gdb.selected_thread()
        if vmd_kgdb.on() or thread is None or len(vmd_guest.cpus()) == 1:
            return False
        frame = gdb.newest_frame()
        self._planted = [Back(pc, frame, but=thread.num, silent=silent) for pc in set(_returns(frame))]
        return bool(self._planted)

    def end(self) -> bool:
        """Take out what is planted; return whether the guest stands where it stopped it."""
        came = any(each.came for each in self._planted)
        for each in self._planted:
            if each.is_valid():
                each.delete()
        self._planted = []
        return came

    def returned(self) -> gdb.Value | None:
        """Return what a finished function has just returned; None where no register holds it."""
        if self._kind is None:
            return None
        return gdb.Value(narrowed(Registers()[vmd_arch.current().result], self._kind)).cast(self._kind)


FOLLOWING = Following()


def _returns(frame: gdb.Frame) -> Iterator[int]:
    """Return where the calls in a frame's current line return to; its code may lie in several places."""
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
    """`-vmd-follow finish|next`: plant for the step that comes; whether anything is planted."""
    planted = FOLLOWING.finish() if how == "finish" else FOLLOWING.next()
    return {"planted": f"{planted:d}"}


def followed() -> dict[str, object]:
    """`-vmd-followed`: take that out; whether the guest stands there, and what was returned."""
    came = FOLLOWING.end()
    value = FOLLOWING.returned() if came else None
    if value is None:
        return {"came": f"{came:d}"}
    return {"came": "1", "value": value.format_string(), "number": f"${gdb.add_history(value)}"}
