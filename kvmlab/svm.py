"""Mends a copy of QEMU whose emulated SVM loses an int3, and takes an interrupt twice.

- An int3 raises #BP, exception 3, which KVM intercepts while GDB has software breakpoints. QEMU instead
  checks the intercept of software interrupts (`raise_interrupt2` of target/i386/tcg/excp_helper.c), which KVM
  does not set. This changes the constant there from SVM_EXIT_SWINT to SVM_EXIT_EXCP_BASE + 3. As a side
  effect, while GDB has a breakpoint, a program's own int3 is lost when KVM injects it into the guest.
- VMRUN delivers the interrupt that KVM injects, but leaves its vector in `exception_index` (`helper_vmrun` of
  svm_helper.c). If QEMU's loop ends before the guest's next exit, it delivers that vector again, whether the
  guest allows interrupts or not: a handler that holds a lock then waits for itself for ever. This removes the
  store of the vector.

Seen in QEMU 11.
"""

from __future__ import annotations

import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile

INTERCEPT = "cpu_svm_check_intercept_param"
SWINT = b"\xbe\x75\x00\x00\x00\xe8"
"""mov $SVM_EXIT_SWINT, %esi; call"""
BP = 0x43

DELIVER = "do_interrupt_x86_hardirq"
INTERRUPT = b"\xc7\x83%s\x00\x00\x01\x00"
"""movl $EXCP_INTERRUPT, exception_index(%rbx): what `helper_pause` does"""
STORE = 0x89
NOP = b"\x66\x0f\x1f\x44\x00\x00"
NEAR = 64
"""How many bytes before the call of `DELIVER` the store may be."""


class Program:
    """The text of a program, to be changed.

    Args:
        path: An ELF file whose functions are in its dynamic symbol table.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            elf = ELFFile(file)
            text = elf.get_section_by_name(".text")
            self._distance = text["sh_addr"] - text["sh_offset"]
            self._text = (text["sh_offset"], text["sh_offset"] + text["sh_size"])
            table = elf.get_section_by_name(".dynsym")
            self._symbols = {each.name: (each["st_value"], each["st_size"]) for each in table.iter_symbols()}
        self.path = path
        self.data = bytearray(path.read_bytes())

    def function(self, name: str) -> tuple[int, int]:
        """Return the offsets in the file at which a function begins and ends."""
        address, size = self._symbols[name]
        return address - self._distance, address - self._distance + size

    def calls(self, name: str, before: bytes, within: tuple[int, int] | None = None) -> list[int]:
        """Return where a function is called; `before` are the bytes up to the distance in the call."""
        start, end = within or self._text
        found, at = [], self.data.find(before, start, end)
        while at >= 0:
            after = at + len(before) + 4
            called = (
                after + self._distance + int.from_bytes(self.data[after - 4 : after], "little", signed=True)
            )
            found += [at] * (called == self._symbols[name][0])
            at = self.data.find(before, at + 1, end)
        return found

    def only(self, found: list[int], what: str) -> int:
        """Return the only place of a list."""
        if len(found) != 1:
            sys.exit(f"{self.path}: {len(found)} {what}, expected 1")
        return found[0]


def mend_int3(qemu: Program) -> None:
    """Let #BP check its own intercept."""
    found = qemu.calls(INTERCEPT, SWINT)
    qemu.data[qemu.only(found, f"calls of {INTERCEPT} for software interrupts") + 1] = BP


def mend_injection(qemu: Program) -> None:
    """Let VMRUN leave `exception_index` alone when it delivers an interrupt."""
    start, end = qemu.function("helper_pause")
    head, tail = INTERRUPT.split(b"%s")
    stores = [
        at
        for at in range(start, end)
        if qemu.data.startswith(head, at) and qemu.data.startswith(tail, at + len(head) + 4)
    ]
    at = qemu.only(stores, "stores of EXCP_INTERRUPT in helper_pause") + len(head)
    member = bytes(qemu.data[at : at + 4])
    call = qemu.only(qemu.calls(DELIVER, b"\xe8", qemu.function("helper_vmrun")), f"calls of {DELIVER}")
    found = [
        at
        for at in range(call - NEAR, call)
        if qemu.data[at] == STORE
        and qemu.data.startswith(member, at + 2)  # mov VECTOR, exception_index(%rbx)
    ]
    at = qemu.only(found, f"stores of the vector before {DELIVER}")
    qemu.data[at : at + len(NOP)] = NOP


def main(program: str) -> None:
    """Change the program in place."""
    qemu = Program(Path(program))
    mend_int3(qemu)
    mend_injection(qemu)
    qemu.path.write_bytes(qemu.data)


if __name__ == "__main__":
    main(*sys.argv[1:])
