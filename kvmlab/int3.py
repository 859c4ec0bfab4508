"""Patches a copy of QEMU so that its emulated SVM passes an int3 to KVM, and not to the nested guest.

An int3 raises #BP, exception 3, which KVM intercepts while GDB has software breakpoints. QEMU instead checks
the intercept of software interrupts (`raise_interrupt2` of target/i386/tcg/excp_helper.c), which KVM does not
set. This changes the constant there from SVM_EXIT_SWINT to SVM_EXIT_EXCP_BASE + 3. As a side effect, while
GDB has a breakpoint, a program's own int3 is lost when KVM injects it into the guest.
"""

from __future__ import annotations

import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile

CHECK = "cpu_svm_check_intercept_param"
SWINT = b"\xbe\x75\x00\x00\x00\xe8"
"""mov $SVM_EXIT_SWINT, %esi; call"""


def main(program: str) -> None:
    """Change the program in place. It must call the check with that constant exactly once."""
    path = Path(program)
    with path.open("rb") as file:
        elf = ELFFile(file)
        (check,) = elf.get_section_by_name(".dynsym").get_symbol_by_name(CHECK)
        text = elf.get_section_by_name(".text")
        offset, distance = text["sh_offset"], text["sh_addr"] - text["sh_offset"]
        end = offset + text["sh_size"]
    data = bytearray(path.read_bytes())
    found, at = [], data.find(SWINT, offset, end)
    while at >= 0:
        after = at + len(SWINT) + 4
        called = after + distance + int.from_bytes(data[after - 4 : after], "little", signed=True)
        found += [at] * (called == check["st_value"])
        at = data.find(SWINT, at + 1, end)
    if len(found) != 1:
        sys.exit(f"{program}: {len(found)} calls of {CHECK} for software interrupts, expected 1")
    data[found[0] + 1] = 0x43
    path.write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
