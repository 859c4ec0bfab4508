"""Identity: whether the loaded vmlinux is the kernel in guest memory; puts its symbols where that is."""

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
"""What is known of the kernel: it is the vmlinux's; it lies where that one's would, its data cannot be read
here; it is of another build; it runs, and says nothing of itself here; it has not mapped itself yet."""


class Verdict(NamedTuple):
    """What was found out about the kernel that runs.

    Args:
        state: One of this module's constants.
        slide: Bytes that the symbols are moved by now.
        moved: Whether they were moved just now.
        how: What the kernel was found by; "" where it was not.
        build_id: The vmlinux's, in hex; "" where it has none.
        theirs: Build-id of a kernel of another build; "" where it was not found.
        banner: Its `linux_banner`.
    """

    state: str
    slide: int
    moved: bool = False
    how: str = ""
    build_id: str = ""
    theirs: str = ""
    banner: str = ""


def settle(*, force: bool = False) -> Verdict:
    """Find the kernel, and move the symbols and with them the breakpoints to where it is.

    Args:
        force: Place the symbols of another build as well, by the one address of the guest that tells.
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
    """Return the build-id of the loaded vmlinux, in hex; "" where it has none."""
    notes = vmd_guest.vmlinux_sections().get(".notes")
    return vmd_elf.build_id(vmd_elf.content(vmd_guest.vmlinux(), notes)) if notes is not None else ""


def _move(slide: int) -> bool:
    if slide == vmd_slide.applied():
        return False
    vmd_slide.apply(slide)
    return True


def prove(force: str) -> dict[str, object]:
    """`-vmd-prove FORCE`: settle which kernel runs; FORCE is 1 or 0."""
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
