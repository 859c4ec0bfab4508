"""Backtraces through exceptions and interrupts, into the interrupted code.

The entry code has no unwind tables that GDB can read, so a backtrace from an oops would end there in garbage.
Before the entry code calls C, it saves all registers in a `struct pt_regs` at the top of its stack.
"""

from __future__ import annotations

import re
import struct

import gdb
import gdb.unwinder
import vmd_arch
import vmd_memory
import vmd_registers
import vmd_user_frames

_WORD_BYTES = 8


class Exceptions(gdb.unwinder.Unwinder):
    """Unwinds from the entry code to the interrupted code.

    A backtrace ends at user space, or goes on into a program whose symbols are loaded; see `vmd_user_frames`.
    """

    def __init__(self) -> None:
        super().__init__("vmd-exceptions")
        self._entries: dict[int, bool] = {}

    def forget(self, _event: object = None) -> None:
        """Forget the addresses of the entry code: symbols were loaded or moved."""
        self._entries.clear()

    def __call__(self, pending_frame: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        """Unwind a frame of the entry code, except the innermost: it may not have saved anything yet."""
        arch = vmd_arch.known()
        if pending_frame.level() == 0 or arch is None:
            return None
        word = vmd_registers.word()
        pc = pending_frame.read_register(arch.pc).cast(word)
        if not self._is_entry(int(pc), arch):
            return None
        sp = pending_frame.read_register(arch.sp).cast(word)
        try:
            memory = vmd_memory.read(int(sp), _WORD_BYTES * len(arch.pt_regs))
        except gdb.MemoryError:
            return None
        regs = dict(zip(arch.pt_regs, struct.unpack(f"<{len(arch.pt_regs)}Q", memory), strict=True))
        unwound = pending_frame.create_unwind_info(vmd_registers.FrameId(sp, pc))
        interrupted = _named(regs[arch.pc])
        if regs[arch.mode_register] & arch.user_mode:
            if vmd_user_frames.USER.leads_to(regs[arch.pc]):
                regs[arch.pc], regs[arch.sp] = vmd_user_frames.BRIDGE, int(sp)
            else:
                regs[arch.pc] = 0  # GDB stops unwinding here
        elif interrupted.endswith(">") and "+" not in interrupted:
            # GDB assumes a return address, and looks up the address before it. At a function's first
            # instruction, that is in another function.
            regs[arch.pc] += 1
        for name in arch.unwound:
            unwound.add_saved_register(name, gdb.Value(regs[name]).cast(word))
        return unwound

    def _is_entry(self, pc: int, arch: vmd_arch.Arch) -> bool:
        found = self._entries.get(pc)
        if found is None:
            # A call that never returns may be the last instruction of a function: look up the address before.
            entry = rf"<(?:{arch.exception_entry})\w*(?:\+\d+)?>"
            found = re.search(entry, _named(pc - 1)) is not None
            self._entries[pc] = found
        return found


def _named(address: int) -> str:
    """Return an address as GDB prints it: "0xffffffff81400b26 <asm_exc_page_fault+38>"."""
    return gdb.Value(address).cast(vmd_registers.word().pointer()).format_string(symbols=True)


EXCEPTIONS = Exceptions()


def register() -> None:
    """Register the unwinder."""
    gdb.unwinder.register_unwinder(None, EXCEPTIONS, replace=True)
    gdb.events.new_objfile.connect(EXCEPTIONS.forget)
    gdb.events.clear_objfiles.connect(EXCEPTIONS.forget)
