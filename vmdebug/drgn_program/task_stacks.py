"""All tasks with their stacks, in the time that drgn takes for a few.

Most of drgn's time for a stack is for names and lines, and many tasks sleep at the same places. So stacks are
unwound here, from one read of each, and drgn names each return address once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import drgn
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import cpu_curr

from vmdebug import arch
from vmdebug.drgn_program import symbols
from vmdebug.errors import VmdebugError
from vmdebug.guest import Kernel
from vmdebug.kimage.symbols import THREAD_BYTES, thread_size
from vmdebug.trace.expressions import orc_table
from vmdebug.trace.unwinding.frame_pointers import FramePointers
from vmdebug.trace.unwinding.orc import Layout, Orc
from vmdebug.trace.unwinding.stack import Frame, Registers, Stack

DEPTH = 64
"""The most frames of a stack."""

_POINTER = "struct task_struct *"
_WORD = struct.Struct("<Q")
_AT_0 = re.compile(r"\n#\d+ +0x0$")


class _Layout(NamedTuple):
    """Where the parts of a `struct task_struct` are, and of what a sleeping task has saved; in bytes."""

    size: int
    pid: int
    comm: int
    comm_bytes: int
    stack: int
    stack_bytes: int
    sp: int
    saved_bytes: int
    saved_pc: int
    saved_bp: int


class TaskStacks:
    """Prints the tasks of a kernel.

    Args:
        program: A program of the kernel.
        kernel: The kernel.
        of_cpu: Returns the stack of a CPU.
    """

    def __init__(
        self, program: drgn.Program, kernel: Kernel, of_cpu: Callable[[int], drgn.StackTrace]
    ) -> None:
        self._program = program
        self._of_cpu = of_cpu
        self._debug = arch.by_name(kernel.arch).debug
        self._layout = self._laid_out(kernel.vmlinux)
        registers = Registers(self._debug)
        self._orc = self._tables(kernel, registers)
        self._unwinder = self._orc or FramePointers(registers)
        self._text = range(*(program.symbol(name).address for name in ("_stext", "_etext")))
        self._named: dict[int, list[str]] = {}

    def __call__(self) -> str:
        """Return each task with its pid, its name and its stack.

        Those that the CPUs of a running guest run have none: it changes all the time.
        """
        on_cpu = {cpu_curr(self._program, cpu).value_(): cpu for cpu in for_each_online_cpu(self._program)}
        return "\n\n".join(self._told(task.value_(), on_cpu) for task in for_each_task(self._program))

    def _told(self, task: int, on_cpu: dict[int, int]) -> str:
        layout = self._layout
        data = self._program.read(task, layout.size)
        comm = data[layout.comm : layout.comm + layout.comm_bytes].partition(b"\0")[0]
        (pid,) = struct.unpack_from("<i", data, layout.pid)
        head = f"pid {pid} ({comm.decode(errors='replace')})"
        cpu = on_cpu.get(task)
        if cpu is not None:
            return f"{head} on CPU {cpu}\n{self._running(cpu)}"
        try:
            sp, bottom = (_WORD.unpack_from(data, at)[0] for at in (layout.sp, layout.stack))
            frames = list(self._frames(sp, bottom))
        except drgn.FaultError as error:
            return f"{head}\nits stack cannot be read: {error}"
        if self._orc is not None and not all(pc in self._text for pc in frames):
            return f"{head}\n{_text(self._program.stack_trace(drgn.Object(self._program, _POINTER, task)))}"
        lines = [line for pc in frames for line in self._names(pc)]
        return "\n".join([head, *(f"#{number:<2} {line}" for number, line in enumerate(lines))])

    def _running(self, cpu: int) -> str:
        try:
            return _text(self._of_cpu(cpu))
        except VmdebugError as error:
            return error.message
        except ValueError as error:  # drgn's, for a dump without the registers of this CPU
            return str(error)

    def _frames(self, sp: int, bottom: int) -> Iterator[int]:
        """Yield the program counters of a sleeping task's frames.

        Args:
            sp: Its stack pointer.
            bottom: The lowest address of its stack.
        """
        layout = self._layout
        data = self._program.read(sp, max(bottom + layout.stack_bytes - sp, layout.saved_bytes))
        pc, bp = (_WORD.unpack_from(data, at)[0] for at in (layout.saved_pc, layout.saved_bp))
        start = sp + layout.saved_bytes
        copied = Stack(pc=pc, sp=start, bp=bp, parts=((start, data[layout.saved_bytes :]),))
        frame: Frame | None = Frame(pc, start, bp, exact=True)
        for _ in range(DEPTH):
            if frame is None:
                return
            yield frame.pc
            frame = self._unwinder.caller(copied, frame)

    def _names(self, pc: int) -> list[str]:
        """Return the frames at an address, the inlined ones first, as drgn prints them."""
        known = self._named.get(pc)
        if known is None:
            said = str(self._program.stack_trace_from_pcs([pc]))
            known = self._named[pc] = [line.partition(" ")[2].lstrip() for line in said.splitlines()]
        return known

    def _laid_out(self, vmlinux: Path | None) -> _Layout:
        debug = self._debug
        names = ("struct task_struct", f"struct {debug.switch_frame}")
        task, saved = (self._program.type(name) for name in names)
        at = {register: drgn.offsetof(saved, field) for field, register in debug.switch_registers.items()}
        comm = next(each for each in task.members if each.name == "comm")
        return _Layout(
            size=drgn.sizeof(task),
            pid=drgn.offsetof(task, "pid"),
            comm=drgn.offsetof(task, "comm"),
            comm_bytes=drgn.sizeof(comm.type),
            stack=drgn.offsetof(task, "stack"),
            stack_bytes=THREAD_BYTES if vmlinux is None else thread_size(vmlinux),
            sp=drgn.offsetof(task, "thread.sp"),
            saved_bytes=drgn.sizeof(saved),
            saved_pc=at[debug.pc],
            saved_bp=at[debug.frame_pointer],
        )

    def _tables(self, kernel: Kernel, registers: Registers) -> Orc | None:
        """Return the kernel's ORC tables; None if it has frame pointers."""
        table = None if kernel.vmlinux is None else orc_table.of_vmlinux(kernel.vmlinux)
        if table is None:
            return None
        members = {each.name: each for each in self._program.type("struct orc_entry").members}
        end = members.get("end")
        layout = Layout(members["type"].bit_field_size, None if end is None else end.bit_offset - 32)
        return Orc(table, layout=layout, slide=symbols.slide(self._program), registers=registers)


def _text(trace: drgn.StackTrace) -> str:
    """Return drgn's text of a stack without the return address 0 at the end of a kernel thread's."""
    return _AT_0.sub("", str(trace))
