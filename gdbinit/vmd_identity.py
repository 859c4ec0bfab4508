"""Compares the loaded vmlinux with the kernel in guest memory, and moves its symbols to that kernel."""

from __future__ import annotations

from typing import NamedTuple

import vmd_elf
import vmd_guest
import vmd_slide

PROVEN = "proven"
PLACED = "placed"
OTHER = "other"
UNKNOWN = "unknown"
UNMAPPED = "unmapped"
"""What is known about the running kernel:

- proven: its build-id, or its banner, is that of the vmlinux.
- placed: its exception table is where the vmlinux's would be, but its data cannot be read on this CPU.
- other: it is of another build.
- unknown: a kernel runs, but cannot be identified on this CPU.
- unmapped: no kernel has mapped itself yet.
"""


class Verdict(NamedTuple):
    """The result of the comparison.

    Args:
        state: One of this module's constants.
        slide: By how many bytes the symbols are now moved.
        moved: Whether `settle` has moved them.
        how: What the kernel was found by; "" if it was not found.
        build_id: Build-id of the vmlinux in hex; "" if it has none.
        theirs: Build-id of a kernel of another build; "" if it was not found.
        banner: `linux_banner` of that kernel.
    """

    state: str
    slide: int
    moved: bool = False
    how: str = ""
    build_id: str = ""
    theirs: str = ""
    banner: str = ""


def settle(*, force: bool = False) -> Verdict:
    """Find the kernel, and move the symbols, and with them the breakpoints, to its address.

    Args:
        force: Also move symbols of another build, by the address of the guest's exception handler.
    """
    found = vmd_slide.find()
    if found is not None:
        return Verdict(
            PROVEN if found.proven else PLACED, found.slide, moved=_move(found.slide), how=found.how
        )
    other = vmd_slide.other_kernel()
    if other is None:
        return Verdict(UNKNOWN if vmd_slide.kernel_mapped() else UNMAPPED, vmd_slide.applied())
    guess = vmd_slide.guessed() if force else None
    moved = guess is not None and _move(guess)
    return Verdict(
        OTHER,
        vmd_slide.applied(),
        moved=moved,
        build_id=build_id(),
        theirs=other.build_id,
        banner=other.banner,
    )


def build_id() -> str:
    """Return the build-id of the loaded vmlinux in hex; "" if it has none."""
    notes = vmd_guest.vmlinux_sections().get(".notes")
    return vmd_elf.build_id(vmd_elf.content(vmd_guest.vmlinux(), notes)) if notes is not None else ""


def _move(slide: int) -> bool:
    if slide == vmd_slide.applied():
        return False
    vmd_slide.apply(slide)
    return True


def prove(force: str) -> dict[str, object]:
    """`-vmd-prove FORCE`: compare vmlinux and kernel; FORCE is 1 or 0."""
    verdict = settle(force=force == "1")
    return {
        "state": verdict.state,
        "slide": str(verdict.slide),
        "moved": f"{verdict.moved:d}",
        "how": verdict.how,
        "build-id": verdict.build_id,
        "theirs": verdict.theirs,
        "banner": verdict.banner,
    }
