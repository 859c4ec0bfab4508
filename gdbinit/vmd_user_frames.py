"""Backtraces that go on from the kernel's entry into the user program whose symbols `vmd-user` has loaded.

GDB ends a backtrace at a frame whose stack is below that of the one before, "corrupt stack?", and user space
is below the kernel. `get_prev_frame_always` of gdb/frame.c makes an exception for functions named
__morestack, which gcc's split stacks have. So a frame with that name, of no code at all, is between the
kernel and the program.
"""

from __future__ import annotations

import struct

import gdb
import gdb.unwinder
import vmd_arch
import vmd_guest
import vmd_kernel
import vmd_memory
import vmd_registers
import vmd_symbol_file
import vmd_task
from vmd_elf_symbols import Area, Symbol

BRIDGE = 0xDEAD_0000_0000_0010
"""The PC of the frame: an address that nothing has."""

_SIZE = 0x20
_STT_FUNC = 2
_WORD_BYTES = 8


class Bridge(gdb.unwinder.Unwinder):
    """Unwinds the frame between the kernel and user space; its stack pointer is the address of `pt_regs`."""

    def __init__(self) -> None:
        super().__init__("vmd-user")
        self._programs: dict[int, tuple[str, list[range]]] = {}
        self._current_at: dict[int, int] = {}
        self._mm_at = 0
        self._symbol = False

    def know(self, task: gdb.Value, spans: list[range]) -> None:
        """Go on into a task's program.

        Args:
            task: The task.
            spans: The addresses of the code that has symbols.
        """
        if not self._symbol:
            start = BRIDGE - _SIZE // 2
            symbol = Symbol("__morestack", start, _SIZE, _STT_FUNC)
            vmd_symbol_file.load("user-space", [Area(start, _SIZE, True)], [symbol])
            self._symbol = True
        # In an unwinder GDB cannot look up names: it would need the selected frame.
        self._mm_at = vmd_kernel.offset_of(vmd_kernel.struct("task_struct"), "mm")
        self._current_at = {
            thread.num: vmd_kernel.current_pointer(vmd_guest.cpu_of(thread)) for thread in vmd_guest.cpus()
        }
        name = f"pid {int(task['pid'])} ({vmd_kernel.name_of(task)})"
        self._programs[int(task["mm"]) & vmd_registers.WORD] = (name, spans)

    def leads_to(self, pc: int) -> bool:
        """Whether the selected CPU runs a known program, and that has this code."""
        found = self._current()
        return found is not None and any(pc in span for span in found[1])

    def called(self) -> str:
        """Return the name of the frame in backtraces."""
        found = self._current()
        return f"<user space: {found[0]}>" if found is not None else "<user space>"

    def _current(self) -> tuple[str, list[range]] | None:
        thread = gdb.selected_thread()
        # The frames of a sleeping task are shown on a CPU that runs another one.
        if not self._programs or thread is None or vmd_task.SLEEPER.asleep is not None:
            return None
        try:
            task = _word(self._current_at.get(thread.num, 0))
            return self._programs.get(_word(task + self._mm_at))
        except gdb.MemoryError:
            return None

    def __call__(self, pending_frame: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        """Unwind the frame to the registers of user space."""
        arch = vmd_arch.known()
        if pending_frame.level() == 0 or arch is None or not self._programs:
            return None
        word = vmd_registers.word()
        if int(pending_frame.read_register(arch.pc).cast(word)) != BRIDGE:
            return None
        sp = int(pending_frame.read_register(arch.sp).cast(word))
        try:
            memory = vmd_memory.read(sp, _WORD_BYTES * len(arch.pt_regs))
        except gdb.MemoryError:
            return None
        # The lowest stack of all: GDB would take the program's frames for corrupt.
        lowest = vmd_registers.FrameId(0, BRIDGE)
        unwound = pending_frame.create_unwind_info(lowest)
        saved = zip(arch.pt_regs, struct.unpack(f"<{len(arch.pt_regs)}Q", memory), strict=True)
        for name, value in saved:
            if _is_word(pending_frame, name):
                unwound.add_saved_register(name, gdb.Value(value).cast(word))
        return unwound


def _word(address: int) -> int:
    return int.from_bytes(vmd_memory.read(address, _WORD_BYTES), "little")


def _is_word(frame: gdb.PendingFrame, name: str) -> bool:
    """Whether GDB has a register of that name and of this size: not the segments, the flags and orig_rax."""
    try:
        return frame.read_register(name).type.sizeof == _WORD_BYTES
    except (gdb.error, ValueError):
        return False


USER = Bridge()


def register() -> None:
    """Register the unwinder."""
    gdb.unwinder.register_unwinder(None, USER, replace=True)
