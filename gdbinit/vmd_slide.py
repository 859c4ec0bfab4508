"""KASLR: finds the running kernel, and checks that it is the one of the loaded vmlinux."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import gdb
import vmd_arch
import vmd_batch
import vmd_elf
import vmd_guest
import vmd_history
import vmd_kernel_scan
import vmd_kgdb

BANNER = "linux_banner"
BANNER_SIZE = 64


class Fingerprint(NamedTuple):
    """Bytes that identify a kernel, and their linked address.

    Args:
        name: What the bytes are, for messages.
        address: Their linked address.
        data: The bytes, from the vmlinux.
    """

    name: str
    address: int
    data: bytes


class Found(NamedTuple):
    """The running kernel's position.

    Args:
        slide: Difference between the real and the linked address in bytes.
        how: What it was found by.
        proven: Whether the guest's memory there matches the loaded vmlinux.
    """

    slide: int
    how: str
    proven: bool


def fingerprint() -> Fingerprint | None:
    """Return the bytes that identify the loaded vmlinux: its notes with the build-id, else its banner."""
    path = vmd_guest.vmlinux()
    notes = vmd_guest.vmlinux_sections().get(".notes")
    if notes is not None:
        data = vmd_elf.content(path, notes)
        if vmd_elf.build_id(data):
            return Fingerprint("build-id note", notes.address, data)
    address = linked(BANNER)
    data = vmd_elf.read(path, address, BANNER_SIZE) if address else b""
    return Fingerprint(BANNER, address, data) if address and data else None


def find() -> Found | None:
    """Find the slide of the running kernel; None if no kernel is mapped, or it is not that of the vmlinux.

    Searching for the fingerprint also proves which kernel it is. If the kernel's data is not mapped, in user
    space with page-table isolation, the exception table still gives the slide. That of a replay is known at
    each position.
    """
    known = vmd_history.facts().get("slide")
    if isinstance(known, int) and (found := _known(known)) is not None:
        return found
    if not vmd_guest.paged():
        return None
    mark = fingerprint()
    if mark is not None:
        for slide in _slides():
            if vmd_guest.memory(mark.address + slide, len(mark.data)) == mark.data:
                return Found(slide, mark.name, proven=True)
    return _by_exception_table(mark)


def _known(slide: int) -> Found | None:
    """Return what is found in a replay, whose kernel is not always mapped; None: it is of another build."""
    mark = fingerprint() if vmd_guest.paged() else None
    there = b"" if mark is None else vmd_guest.memory(mark.address + slide, len(mark.data))
    if mark is None or not there:
        return Found(slide, "recording", proven=False)
    return Found(slide, "recording", proven=True) if there == mark.data else None


def _slides() -> Iterator[int]:
    """Yield every possible slide; over a serial line, where each attempt is slow, the likely one first."""
    arch = vmd_arch.current()
    if vmd_kgdb.on():
        at, pc = linked(vmd_kgdb.ENTRY), vmd_guest.register("pc")
        if at is not None and pc is not None:
            yield max(pc - at, 0) // arch.kaslr_step * arch.kaslr_step
    for place in range(arch.kaslr_places):
        yield place * arch.kaslr_step


def place_of(distance: int) -> int | None:
    """Return the distance from a linked address if it is a slide that KASLR can choose; else None."""
    arch = vmd_arch.current()
    place, rest = divmod(distance, arch.kaslr_step)
    return distance if rest == 0 and 0 <= place < arch.kaslr_places else None


def applied() -> int:
    """Return the slide of the loaded symbols; see `apply`."""
    return int(getattr(symbols(), "vmd_slide", 0))


def apply(slide: int) -> None:
    """Move the vmlinux's symbols; breakpoints move with them.

    Args:
        slide: Difference between the real and the linked address in bytes.
    """
    path = shlex.quote(vmd_guest.vmlinux())
    with gdb.with_parameter("confirm", False), gdb.with_parameter("auto-load python-scripts", False):
        gdb.execute(f"symbol-file {path} -o {slide:#x}", to_string=True)
    loaded = symbols()
    if loaded is not None:
        # An attribute of the objfile: it vanishes when the file is loaded again.
        loaded.vmd_slide = slide  # type: ignore[attr-defined]


def misplaced() -> str:
    """Return a hint for the user if the symbols are not at the kernel's address; else ""."""
    found = find() if vmd_guest.has_vmlinux() else None
    if found is None or found.slide == applied():
        return ""
    return f"KASLR has moved the kernel by {found.slide:#x}; move the symbols too: vmd-slide --apply"


def linked(name: str) -> int | None:
    """Return a symbol's linked address in the loaded vmlinux; None if it has no such symbol.

    Look into the file first: GDB sorts all names of its index for the first one that it looks up.
    """
    with contextlib.suppress(OSError, ValueError):  # GDB reads other formats too
        at = vmd_elf.symbol(vmd_guest.vmlinux(), name)
        if at is not None:
            return at
    try:
        value = gdb.parse_and_eval(f"&{name}")
    except gdb.error:
        return None
    return (int(value) & (2**64 - 1)) - applied()


def address(name: str) -> int | None:
    """Return a symbol's address where the symbols are now; None if there is no such symbol."""
    at = linked(name)
    return None if at is None else at + applied()


def kernel_mapped() -> bool:
    """Whether a kernel, of whichever build, runs or handles exceptions in the kernel's address range."""
    return _inside() is not None


def other_kernel() -> vmd_kernel_scan.Kernel | None:
    """Return the running kernel's identity if `find` finds nothing; None if it cannot be read."""
    if vmd_kgdb.on():
        # Searching the memory would take hours over a serial line.
        return vmd_kernel_scan.Kernel(vmd_kgdb.banner(), "")
    inside = _inside()
    if inside is None:
        return None
    # Search after the entry code, then before it: early handlers are linked after everything else.
    for start in (inside, max(inside - vmd_kernel_scan.REACH // 2, vmd_arch.current().kernel_map)):
        kernel = vmd_kernel_scan.kernel(vmd_guest.memory, start)
        if kernel.banner:
            return kernel
    return None


def guessed() -> int | None:
    """Return the slide by the guest's exception table or its first function; None if neither gives one.

    It is right only if the loaded vmlinux is that of the kernel, which this does not check.
    """
    arch = vmd_arch.current()
    handler = vmd_guest.exception_handler()
    marks = (
        (arch.first_vector, handler),
        (arch.early_vector, handler),
        (arch.first_symbols[0], vmd_guest.register("pc")),
    )
    for name, real in marks:
        at = linked(name)
        slide = place_of(real - at) if at is not None and real is not None else None
        if slide is not None:
            return slide
    return None


def _inside() -> int | None:
    """Return an address in or before the running kernel's text; None if no kernel is mapped."""
    if not vmd_guest.paged():
        return None
    lowest = vmd_arch.current().kernel_map
    handler = vmd_guest.exception_handler()
    if handler is not None and handler >= lowest:
        return handler
    # The first functions run before there is an exception table. They are in .init.text, after everything
    # else.
    pc = vmd_guest.register("pc")
    if pc is None or pc < lowest:
        return None
    return max(pc - vmd_kernel_scan.REACH // 2, lowest)


def _by_exception_table(mark: Fingerprint | None) -> Found | None:
    handler = vmd_guest.exception_handler()
    entry = linked(vmd_arch.current().first_vector)
    slide = place_of(handler - entry) if handler is not None and entry is not None else None
    if slide is None:
        return None
    # Readable, but not the fingerprint: another kernel with its entry code at the same address.
    if mark is not None and vmd_guest.memory(mark.address + slide, len(mark.data)):
        return None
    return Found(slide, "exception table", proven=False)


def symbols() -> gdb.Objfile | None:
    """Return the loaded vmlinux; None if there is none."""
    path = vmd_guest.vmlinux()
    return next((each for each in gdb.objfiles() if each.filename == path), None)


class Slide(gdb.Command):
    """Find how far KASLR moved the kernel: vmd-slide [--apply].

    Searches guest memory for the build-id note of the loaded vmlinux (or linux_banner, if it
    has none) at each address where KASLR can put it; if that fails, uses the exception
    table. With --apply, moves the symbols there, and breakpoints with them.

    Example: vmd-slide --apply
    """

    NAME = "vmd-slide"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STATUS)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Find, print, apply."""
        if argument not in ("", "--apply"):
            vmd_batch.fail(f"vmd-slide takes --apply or nothing, got {argument!r}", vmd_batch.USAGE)
        vmd_guest.need_connected()
        found = find()
        if found is None:
            vmd_batch.fail(_why_not())
        proof = "" if found.proven else "; not proven by a build-id"
        print(f"slide {found.slide:#x}, by the {found.how}{proof}")
        if argument == "--apply" and found.slide != applied():
            apply(found.slide)
            print(f"symbols of {vmd_guest.vmlinux()} moved there")


def _why_not() -> str:
    if not vmd_guest.kernel_runs():
        return "no kernel is mapped yet, so there is no slide\nlet the guest run: continue"
    return f"the running kernel is not that of {vmd_guest.vmlinux()}\nload the right vmlinux: file VMLINUX"
