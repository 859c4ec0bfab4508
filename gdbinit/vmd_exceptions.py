"""Backtraces through exceptions and interrupts, to whom they came to.

The entry code of x86-64 has no unwind tables that GDB reads, so a backtrace out of an oops ended in
garbage where it became interesting. Before it calls into C the entry code has saved everything in a
`struct pt_regs` at the top of its stack (idtentry_body of arch/x86/entry/entry_64.S).
"""

from __future__ import annotations

import re
import struct

import gdb
import gdb.unwinder
import vmd_memory

ENTRY = re.compile(r"<(?:asm_(?:exc|sysvec|common_interrupt|spurious)|entry_SYSCALL_64)\w*(?:\+\d+)?>")
"""How GDB writes an address in code that saves a `struct pt_regs` and calls into C."""

REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
)
"""`struct pt_regs`, which user space knows as well (arch/x86/include/uapi/asm/ptrace.h), by GDB's names."""

SAVED = ("r15", "r14", "r13", "r12", "rbp", "rbx", "rip", "rsp")
SIZE = 8 * len(REGISTERS)
USER = 3
"""The privilege level in `cs` that user space has."""


class Exceptions(gdb.unwinder.Unwinder):
    """Goes from the entry code to what was interrupted; a trace ends where that was user space."""

    def __init__(self) -> None:
        super().__init__("vmd-exceptions")
        self._entries: dict[int, bool] = {}

    def forget(self, _event: object = None) -> None:
        """Forget where the entry code is: symbols have come or moved."""
        self._entries.clear()

    def __call__(self, pending_frame: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        """Unwind a frame of the entry code; the innermost one may not have saved anything yet."""
        if pending_frame.level() == 0:
            return None
        word = gdb.lookup_type("unsigned long")
        pc = pending_frame.read_register("rip").cast(word)
        if not self._is_entry(int(pc)):
            return None
        sp = pending_frame.read_register("rsp").cast(word)
        try:
            memory = vmd_memory.read(int(sp), SIZE)
        except gdb.MemoryError:
            return None
        regs = dict(zip(REGISTERS, struct.unpack(f"<{len(REGISTERS)}Q", memory), strict=True))
        unwound = pending_frame.create_unwind_info(_FrameId(sp, pc))
        if regs["cs"] & USER:
            regs["rip"] = 0  # GDB goes no further
        elif _named(regs["rip"]).endswith(">") and "+" not in _named(regs["rip"]):
            # GDB takes it for a return address, and looks before it: at a function's first
            # instruction that is another function's last.
            regs["rip"] += 1
        for name in SAVED:
            unwound.add_saved_register(name, gdb.Value(regs[name]).cast(word))
        return unwound

    def _is_entry(self, pc: int) -> bool:
        found = self._entries.get(pc)
        if found is None:
            # A call that never returns may be the last instruction: the one before belongs to the function.
            found = ENTRY.search(_named(pc - 1)) is not None
            self._entries[pc] = found
        return found


def _named(address: int) -> str:
    """Return an address as GDB writes it: "0xffffffff81400b26 <asm_exc_page_fault+38>"."""
    return gdb.Value(address).cast(gdb.lookup_type("void").pointer()).format_string(symbols=True)


class _FrameId:
    """What GDB tells frames apart by."""

    def __init__(self, sp: gdb.Value, pc: gdb.Value) -> None:
        self.sp = sp
        self.pc = pc


EXCEPTIONS = Exceptions()


def register() -> None:
    """Have GDB ask for it."""
    gdb.unwinder.register_unwinder(None, EXCEPTIONS, replace=True)
    gdb.events.new_objfile.connect(EXCEPTIONS.forget)
    gdb.events.clear_objfiles.connect(EXCEPTIONS.forget)
