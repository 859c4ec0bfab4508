"""KASLR: where the running kernel is, and whether it is that of the loaded vmlinux."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import NamedTuple

import gdb
import vmd_arch
import vmd_batch
import vmd_elf
import vmd_guest
import vmd_kernel_scan
import vmd_kgdb

BANNER = "linux_banner"
BANNER_SIZE = 64


class Print(NamedTuple):
    """Bytes that tell one kernel from every other, and where they were linked to.

    Args:
        name: What they are, for messages.
        address: Their linked address.
        data: Themselves, from the vmlinux.
    """

    name: str
    address: int
    data: bytes


class Found(NamedTuple):
    """Where the kernel is.

    Args:
        slide: Bytes between the linked and the real address.
        how: What it was found by.
        proven: Whether the guest's memory there is that of the loaded vmlinux.
    """

    slide: int
    how: str
    proven: bool


def fingerprint() -> Print | None:
    """Return the bytes that prove the loaded vmlinux: its notes with the build-id, else its banner."""
    path = vmd_guest.vmlinux()
    notes = vmd_guest.vmlinux_sections().get(".notes")
    if notes is not None:
        data = vmd_elf.content(path, notes)
        if vmd_elf.build_id(data):
            return Print("build-id note", notes.address, data)
    address = linked(BANNER)
    data = vmd_elf.read(path, address, BANNER_SIZE) if address else b""
    return Print(BANNER, address, data) if address and data else None


def find() -> Found | None:
    """Find the slide of the kernel that runs; None while there is none, or it is of another vmlinux.

    The scan proves the kernel as well. Where the kernel's data is not mapped, in user
    space with page-table isolation, the IDT still tells the slide.
    """
    if not vmd_guest.paged():
        return None
    mark = fingerprint()
    if mark is not None:
        for slide in _slides():
            if vmd_guest.memory(mark.address + slide, len(mark.data)) == mark.data:
                return Found(slide, mark.name, proven=True)
    return _by_idt(mark)


def _slides() -> Iterator[int]:
    """Return every slide that there can be; over a serial line, where each costs, the likely one first."""
    arch = vmd_arch.current()
    if vmd_kgdb.on():
        at, pc = linked(vmd_kgdb.ENTRY), vmd_guest.register("pc")
        if at is not None and pc is not None:
            yield max(pc - at, 0) // arch.kaslr_step * arch.kaslr_step
    for place in range(arch.kaslr_places):
        yield place * arch.kaslr_step


def place_of(distance: int) -> int | None:
    """Return the slide that a distance from a linked address is; None where KASLR moves no kernel so far."""
    arch = vmd_arch.current()
    place, rest = divmod(distance, arch.kaslr_step)
    return distance if rest == 0 and 0 <= place < arch.kaslr_places else None


def applied() -> int:
    """Return the slide that `apply` gave the loaded vmlinux."""
    return int(getattr(_symbols(), "vmd_slide", 0))


def apply(slide: int) -> None:
    """Move the vmlinux's symbols to where the kernel is; breakpoints move with them.

    Args:
        slide: Bytes between the linked and the real address.
    """
    path = shlex.quote(vmd_guest.vmlinux())
    with gdb.with_parameter("confirm", False), gdb.with_parameter("auto-load python-scripts", False):
        gdb.execute(f"symbol-file {path} -o {slide:#x}", to_string=True)
    symbols = _symbols()
    if symbols is not None:
        # GDB lets one keep what belongs to an objfile on it: it goes when the file is loaded anew.
        symbols.vmd_slide = slide  # type: ignore[attr-defined]


def misplaced() -> str:
    """Return what to tell a user whose symbols are not where the kernel is; "" when that cannot be said."""
    found = find() if vmd_guest.has_vmlinux() else None
    if found is None or found.slide == applied():
        return ""
    return f"KASLR has put the kernel {found.slide:#x} on, and the symbols are not there: vmd-slide --apply"


def linked(name: str) -> int | None:
    """Return the address that the loaded vmlinux links a symbol to; None when it has no such symbol."""
    try:
        value = gdb.parse_and_eval(f"&{name}")
    except gdb.error:
        return None
    return (int(value) & (2**64 - 1)) - applied()


def kernel_mapped() -> bool:
    """Whether a kernel runs where it is linked to, or its exceptions go there, whichever kernel it is."""
    return _inside() is not None


def other_kernel() -> vmd_kernel_scan.Kernel | None:
    """Return what runs when `find` finds nothing; None when that cannot be said."""
    if vmd_kgdb.on():
        # A search through its memory would take hours at the speed of a serial line.
        return vmd_kernel_scan.Kernel(vmd_kgdb.banner(), "")
    inside = _inside()
    if inside is None:
        return None
    # Behind the entry code, and failing that before it: the first handlers are linked behind all else.
    for start in (inside, max(inside - vmd_kernel_scan.REACH // 2, vmd_arch.current().kernel_map)):
        kernel = vmd_kernel_scan.kernel(vmd_guest.memory, start)
        if kernel.banner:
            return kernel
    return None


def guessed() -> int | None:
    """Return the slide that the guest's IDT, or its first function, tells of; None where neither does.

    It holds for the loaded vmlinux only if that is the kernel's, which this does not look at.
    """
    arch = vmd_arch.current()
    marks = (
        (arch.first_vector, vmd_guest.exception_handler()),
        (arch.first_symbols[0], vmd_guest.register("pc")),
    )
    for name, real in marks:
        at = linked(name)
        slide = place_of(real - at) if at is not None and real is not None else None
        if slide is not None:
            return slide
    return None


def _inside() -> int | None:
    """Return an address before or inside the running kernel's text; None while there is none."""
    if not vmd_guest.paged():
        return None
    lowest = vmd_arch.current().kernel_map
    handler = vmd_guest.exception_handler()
    if handler is not None and handler >= lowest:
        return handler
    # The first functions run before there is an IDT; they are linked behind all else: .init.text.
    pc = vmd_guest.register("pc")
    if pc is None or pc < lowest:
        return None
    return max(pc - vmd_kernel_scan.REACH // 2, lowest)


def _by_idt(mark: Print | None) -> Found | None:
    handler = vmd_guest.exception_handler()
    entry = linked(vmd_arch.current().first_vector)
    slide = place_of(handler - entry) if handler is not None and entry is not None else None
    if slide is None:
        return None
    # Readable there, and not what find() looked for: another kernel that has its entry at the same place.
    if mark is not None and vmd_guest.memory(mark.address + slide, len(mark.data)):
        return None
    return Found(slide, "IDT", proven=False)


def _symbols() -> gdb.Objfile | None:
    path = vmd_guest.vmlinux()
    return next((each for each in gdb.objfiles() if each.filename == path), None)


class Slide(gdb.Command):
    """Find how far KASLR moved the kernel: vmd-slide [--apply].

    Looks for the build-id note of the loaded vmlinux (linux_banner where it has none) in
    guest memory at the 512 places where the kernel can be; failing that, at the IDT.
    With --apply the symbols are moved there, and breakpoints with them.

    Example: vmd-slide --apply
    """

    NAME = "vmd-slide"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STATUS)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Find, print, apply."""
        if argument not in ("", "--apply"):
            vmd_batch.fail(f"vmd-slide takes --apply or nothing, not {argument!r}", vmd_batch.USAGE)
        vmd_guest.need_connected()
        found = find()
        if found is None:
            vmd_batch.fail(_why_not())
        proof = "" if found.proven else "; not proven by its build-id"
        print(f"slide {found.slide:#x}, by the {found.how}{proof}")
        if argument == "--apply" and found.slide != applied():
            apply(found.slide)
            print(f"symbols of {vmd_guest.vmlinux()} moved there")


def _why_not() -> str:
    if not vmd_guest.kernel_runs():
        return "no kernel is mapped yet: the slide is known once it is\nrun on: continue"
    return f"the running kernel is not that of {vmd_guest.vmlinux()}\nload its own: file VMLINUX"
