"""Identity at attach: symbols are proven to be those of the kernel in guest memory, and put where that is.

Finding and placing is `gdbinit/`'s, called by its MI commands; this is when to call it, and what
its verdict means. A guest that stands before its kernel's first instruction cannot be asked: it is once
the kernel has mapped itself, where it first runs at the addresses of its symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from vmdebug import arch
from vmdebug.debugger import mi
from vmdebug.errors import MismatchError, StateError, UsageError
from vmdebug.guest import Kernel
from vmdebug.spelling import option

Ask = Callable[[str], Mapping[str, Any]]
"""Has GDB carry out an MI command, and returns what the result carries."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What GDB found out about the kernel in guest memory; see `gdbinit/vmd_identity.py`.

    Args:
        state: "proven": it is that of the symbols. "placed": it lies where theirs would, its data cannot be
            read here. "other": it is of another build. "unknown": it runs, and says nothing of itself
            here. "unmapped": there is none yet.
        slide: Bytes by which KASLR moved it, and the symbols with it.
        moved: Whether the symbols were moved just now.
        how: What it was found by.
        build_id: That of the symbols, in hex; "" where they have none or it is not needed.
        theirs: That of a kernel of another build.
        banner: Such a kernel's `linux_banner`.
    """

    state: Literal["proven", "placed", "other", "unknown", "unmapped"]
    slide: int = 0
    moved: bool = False
    how: str = ""
    build_id: str = ""
    theirs: str = ""
    banner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the symbols are to be proven for.

    Args:
        kernel: What was started, with its symbols.
        accel: What QEMU runs it with.
        kaslr: Whether the kernel chooses its own address.
        force: Whether to go on with symbols of another build.
    """

    kernel: Kernel
    accel: Literal["kvm", "tcg"] = "tcg"
    kaslr: bool = False
    force: bool = False


class Identity:
    """The question whether the symbols are the guest's, until it is answered.

    Args:
        wanted: What was started, and how.
        warn: Told what goes on by force.
    """

    def __init__(self, wanted: Wanted, warn: Callable[[str], None]) -> None:
        self._wanted = wanted
        self._warn = warn
        self.verdict = Verdict(state="unmapped")
        self.open = True
        """Whether it is still to be answered."""
        self.waiting = False
        """Whether something is planted that stops the guest where its kernel is mapped."""

    def settle(self, ask: Ask) -> bool:
        """Ask the stopped guest; put the symbols, and breakpoints with them, where its kernel is.

        Returns:
            Whether the symbols have moved.

        Raises:
            MismatchError: the kernel is of another build, and nobody has said to go on.
        """
        answer = ask(f"-vmd-prove {self._wanted.force:d}")
        self.verdict = msgspec.convert(answer, Verdict, strict=False)
        if self.verdict.state == "other":
            if not self._wanted.force:
                raise mismatch(self.verdict, self._wanted.kernel)
            self._warn(f"going on with symbols of another build\n{_sides(self.verdict, self._wanted.kernel)}")
        self.open = self.verdict.state not in ("proven", "other")
        return self.verdict.moved

    def wait(self, ask: Ask, *, planned: bool) -> bool:
        """Have the guest stop where its kernel is mapped, if it is still on its way there.

        Args:
            ask: Asks GDB.
            planned: Whether the user has set breakpoints.

        Returns:
            Whether it will stop there.

        Raises:
            StateError: breakpoints cannot be had that early.
            MismatchError: as in `settle`.
        """
        self.settle(ask)
        if self.verdict.state != "unmapped":
            return False
        wanted, facts = self._wanted, arch.by_name(self._wanted.kernel.arch).debug
        self.waiting = bool(ask(f"-vmd-await {wanted.accel} {wanted.kaslr:d}")["first"])
        if not self.waiting and wanted.kaslr and wanted.accel == "kvm" and planned:
            raise StateError(
                f"breakpoints cannot wait for a kernel that KASLR puts in one of {facts.kaslr_places} places:"
                f" KVM has {facts.hardware_breakpoints} hardware breakpoints",
                hint=f"start it without {option('kaslr', True)}, or with {option('accel', 'tcg')};"
                " or set them while it runs",
            )
        return self.waiting

    def arrived(self, ask: Ask) -> bool:
        """Take out what `wait` planted; return whether the guest stands there."""
        self.waiting = False
        return bool(ask("-vmd-awaited")["reached"] == "1")

    def never_hit(self, ask: Ask, entry: Mapping[str, Any], where: str) -> UsageError | None:
        """Return the error for a breakpoint where the kernel runs before it is mapped; None for any other.

        Args:
            ask: Asks GDB.
            entry: What GDB says about it: MI's `bkpt={…}`.
            where: What was asked for.
        """
        facts = arch.by_name(self._wanted.kernel.arch).debug
        name = _function(ask, entry)
        if name not in facts.identity_mapped:
            return None
        inside = "" if name == where else f"is in {name}, which "
        at = int(str(entry["addr"]), 16) - self.verdict.slide - int(facts.kernel_map, 16)
        return UsageError(
            f"a breakpoint at {where} is never hit: it {inside}runs before the kernel is mapped, at another"
            " address than its symbol's",
            hint=f"the first that can be reached: {facts.first_symbols[0]}; under TCG also its physical"
            f" address without KASLR, {at:#x}",
        )


def _function(ask: Ask, entry: Mapping[str, Any]) -> str:
    """Return the function that a breakpoint is in; of assembly GDB has lines, and names no function."""
    address = str(entry.get("addr", ""))
    if "func" in entry or not address.startswith("0x"):
        return str(entry.get("func", ""))
    named = ask(f"-data-evaluate-expression {mi.quote(f'(void (*)(void)) {address}')}")["value"]
    return str(named).rpartition("<")[2].rstrip(">").partition("+")[0]


def mismatch(verdict: Verdict, kernel: Kernel) -> MismatchError:
    """Return the error for a guest whose kernel is not that of the symbols."""
    return MismatchError(
        f"the symbols are not those of the kernel that runs: build-id {verdict.build_id or 'none'}"
        f" against {verdict.theirs or 'an unknown one'}",
        hint=f"start the guest with its own vmlinux, {option('vmlinux', 'FILE')}; {option('force', True)}"
        " continues anyway",
        detail=_sides(verdict, kernel),
    )


def _sides(verdict: Verdict, kernel: Kernel) -> str:
    return (
        f"symbols  {kernel.vmlinux}\n"
        f"         build-id {verdict.build_id or 'none'} (its note)\n"
        f"guest    {verdict.banner}\n"
        f"         build-id {verdict.theirs or 'not found'} (its memory)\n"
        f"started  {kernel.image}, {kernel.origin}\n"
        f"         build-id {kernel.build_id or 'none'} (the kernel inside)"
    )
