"""Modules without debugging information: names of their functions from the guest's kallsyms, and backtraces.

Without a file, GDB gets the symbols that the kernel keeps of a module. Without unwind tables in a file,
callers are found by the kernel's ORC table of the module, or by frame pointers.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gdb
import gdb.unwinder
import vmd_arch
import vmd_elf
import vmd_frame_state
import vmd_guest
import vmd_kernel
import vmd_memory
import vmd_orc
import vmd_registers
import vmd_symbol_file
from vmd_elf_symbols import Area, Symbol
from vmd_frame_state import State
from vmd_loaded_modules import Module
from vmd_orc import Frame

_ELF_SYMBOL = struct.Struct("<IBBHQQ")
_KINDS = (1, 2)
"""STT_OBJECT and STT_FUNC."""

_LONGEST_NAME = 512
"""KSYM_NAME_LEN of include/linux/kallsyms.h, at most."""

_UNWINDS = (".debug_frame", ".eh_frame")
_OFFSET = re.compile(r"<(?P<name>.+?)(?:\+(?P<offset>\d+))?>$")
_COLD = "cold"
"""In the name of a part of a function that gcc has put elsewhere: the function has made its frame before."""

_WORD = struct.Struct("<Q")


class _Bare(NamedTuple):
    """A module.

    Args:
        module: The module.
        areas: Its memory.
        file: The symbols from kallsyms that GDB has loaded; None if it has those of the module's own file.
        table: Its ORC table; None in kernels without.
    """

    module: Module
    areas: tuple[Area, ...]
    file: Path | None
    table: vmd_orc.Table | None

    def has(self, pc: int) -> bool:
        """Whether an address is in its code."""
        return any(each.code and each.has(pc) for each in self.areas)


class BareModules:
    """The loaded modules whose debugging information GDB does not have."""

    def __init__(self) -> None:
        self._known: dict[str, _Bare] = {}

    def outdated(self, present: dict[str, Module]) -> None:
        """Forget the modules with symbols from kallsyms that were unloaded or have changed."""
        for name, bare in list(self._known.items()):
            if bare.file is not None and present.get(name) != bare.module:
                self.forget(name)

    def forget(self, name: str) -> None:
        """Forget a module, and its symbols from kallsyms."""
        bare = self._known.pop(name, None)
        if bare is not None and bare.file is not None:
            with contextlib.suppress(gdb.error), gdb.with_parameter("confirm", False):
                gdb.execute(f"remove-symbol-file {shlex.quote(str(bare.file))}", to_string=True)

    def placed(self, module: Module, file: Path) -> None:
        """Note a module whose file GDB has loaded, and which has no debugging information."""
        if not any(each in vmd_elf.sections(str(file)) for each in _UNWINDS):
            self._known[module.name] = _Bare(module, tuple(module.areas()), None, _table(module))

    def named(self, module: Module) -> bool:
        """Give GDB the symbols of a module that has no file; return whether the kernel has any."""
        if module.name in self._known:
            return True
        areas = module.areas()
        found = symbols(module, areas)
        if not found:
            return False
        file = vmd_symbol_file.load(f"{module.name}.kallsyms", areas, found)
        self._known[module.name] = _Bare(module, tuple(areas), file, _table(module))
        return True

    def at(self, pc: int) -> _Bare | None:
        """Return the module that has this code; None if there is none without debugging information."""
        return next((each for each in self._known.values() if each.has(pc)), None)


BARE = BareModules()


def symbols(module: Module, areas: list[Area]) -> list[Symbol]:
    """Return the symbols that the kernel keeps of a module.

    See `struct mod_kallsyms` of include/linux/module.h.

    Args:
        module: The module.
        areas: Its memory.
    """
    entry = module.entry()
    if not vmd_kernel.has_field(entry.type, "kallsyms") or not entry["kallsyms"]:
        return []
    table = entry["kallsyms"].dereference()
    rows = vmd_guest.memory(int(table["symtab"]), int(table["num_symtab"]) * _ELF_SYMBOL.size)
    kept = [
        (name, address, size, info & 0xF)
        for name, info, _, _, address, size in _ELF_SYMBOL.iter_unpack(rows)
        if info & 0xF in _KINDS and any(each.has(address) for each in areas)
    ]
    names_at = int(table["strtab"]) & vmd_registers.WORD
    longest = max((name for name, *_ in kept), default=0) + _LONGEST_NAME
    ends = [each.address + each.size - names_at for each in areas if each.has(names_at)]
    names = vmd_guest.memory(names_at, min([longest, *ends]))
    found = [
        Symbol(names[name:].partition(b"\0")[0].decode(errors="replace"), address, size, kind)
        for name, address, size, kind in kept
    ]
    return [each for each in found if each.name and not each.name.startswith((".L", "$"))]


def _table(module: Module) -> vmd_orc.Table | None:
    """Return a module's ORC table; see `struct mod_arch_specific` of arch/x86/include/asm/module.h."""
    entry = module.entry()["arch"]
    if not vmd_kernel.has_field(entry.type, "num_orcs"):
        return None
    count = int(entry["num_orcs"])
    fields = {each.name: each for each in vmd_kernel.struct("orc_entry").fields()}
    places, at = int(entry["orc_unwind_ip"]) & vmd_registers.WORD, int(entry["orc_unwind"])
    kind = fields["type"]
    return vmd_orc.Table(
        vmd_orc.addresses(vmd_guest.memory(places, 4 * count), places),
        vmd_guest.memory(at, vmd_orc.ENTRY_SIZE * count),
        _of_bits(kind),
        kind.bitsize,
        # Since Linux 6.4 (fb799447ae29) it follows UNDEFINED and END_OF_STACK, and `end` is gone.
        0 if "end" in fields else 2,
    )


def _of_bits(field: gdb.Field) -> int:
    """Return the first bit of a bit field in the last two bytes of a `struct orc_entry`."""
    assert field.bitpos is not None  # noqa: S101 - for the type checker: only static members have none
    return field.bitpos - 32


class Callers(gdb.unwinder.Unwinder):
    """Finds the callers of these modules' functions."""

    def __init__(self) -> None:
        super().__init__("vmd-bare-modules")

    def __call__(self, pending_frame: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        """Unwind a frame of such a function."""
        arch = vmd_arch.known()
        if arch is None or not arch.frame_pointer:
            return None
        word = vmd_registers.word()
        frame = Frame(
            *(
                int(pending_frame.read_register(name).cast(word))
                for name in (arch.pc, arch.sp, arch.frame_pointer)
            )
        )
        # A return address may be that of the next function.
        inside = frame._replace(pc=frame.pc - (pending_frame.level() > 0))
        bare = BARE.at(inside.pc)
        if bare is None:
            return None
        name, offset = _symbol(inside.pc)
        try:
            start, cold = inside.pc - offset, _COLD in name
            found = _caller(bare, frame, inside, start, arch, cold=cold) if name else None
        except gdb.MemoryError:
            return None
        if found is None:
            return None
        unwound = pending_frame.create_unwind_info(vmd_registers.FrameId(found.sp, inside.pc - offset))
        for register, value in zip((arch.pc, arch.sp, arch.frame_pointer), found, strict=True):
            unwound.add_saved_register(register, gdb.Value(value).cast(word))
        return unwound


def _caller(
    bare: _Bare, frame: Frame, inside: Frame, start: int, arch: vmd_arch.Arch, *, cold: bool
) -> Frame | None:
    if bare.table is not None:
        return vmd_orc.caller(bare.table, inside, _word)
    done = list(_executed(start, frame.pc)) if frame.pc > start else []
    state = vmd_frame_state.at_end(done, arch, begun=cold)
    if state is State.NONE:
        return Frame(_word(frame.sp), frame.sp + _WORD.size, frame.bp)
    base = frame.sp if state is State.SAVED else frame.bp
    return Frame(_word(base + _WORD.size), base + 2 * _WORD.size, _word(base))


def _executed(start: int, end: int) -> Iterator[tuple[str, str]]:
    """Yield the instructions between two addresses: their bytes in hexadecimal, and GDB's words for them."""
    code = vmd_memory.read(start, end - start)
    for each in gdb.selected_inferior().architecture().disassemble(start, end - 1):
        at = int(each["addr"]) - start
        yield code[at : at + int(each["length"])].hex(), str(each["asm"])


def _word(address: int) -> int:
    found: int = _WORD.unpack(vmd_memory.read(address & vmd_registers.WORD, _WORD.size))[0]
    return found


def _symbol(pc: int) -> tuple[str, int]:
    """Return the function that an address is in, and the offset in it; "" if GDB knows none."""
    text = gdb.Value(pc).cast(vmd_registers.word().pointer()).format_string(symbols=True)
    found = _OFFSET.search(text)
    return (found["name"], int(found["offset"] or 0)) if found else ("", 0)


def described(frame: gdb.Frame) -> str | None:
    """Return a frame as the kernel's own traces do, "brd_init+0x12 [brd]"; None if GDB can tell its lines."""
    if frame.function() is not None:
        return None
    pc = frame.pc()
    before = pc - (frame.level() > 0)
    bare = BARE.at(before)
    if bare is None:
        return None
    name, offset = _symbol(before)
    return f"{name}+{offset + pc - before:#x} [{bare.module.name}]" if name else None


def register() -> None:
    """Register the unwinder, after which that of sleeping tasks comes first."""
    gdb.unwinder.register_unwinder(None, Callers(), replace=True)
