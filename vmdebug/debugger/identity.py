"""Whether the symbols are those of the kernel in guest memory, and where they have to be.

`gdbinit/` finds the kernel and moves the symbols; this module decides when, and what the verdict means. A
guest before its kernel's first instruction cannot be asked. It is asked where the kernel has mapped itself:
there it first runs at the addresses of its symbols.
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

Fetch = Callable[[str, float], Mapping[str, Any]]
"""Executes an MI command within that many seconds, and returns the values in its result."""

SETTLE_SECONDS = 60.0
"""How long GDB may take to find the kernel, and to load its symbols anew where KASLR has put it."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What GDB found out about the kernel in guest memory; see `gdbinit/vmd_identity.py`.

    Args:
        state: "proven": it is the kernel of the symbols. "placed": it is where that kernel would be, but its
            data cannot be read at this point. "other": it is of another build. "unknown": it runs, but cannot
            be identified at this point. "unmapped": there is no kernel yet.
        slide: Bytes by which KASLR moved the kernel, and the symbols with it.
        moved: Whether the symbols were moved just now.
        how: How the kernel was found.
        build_id: The build-id of the symbols, in hex; "" if they have none or it was not needed.
        theirs: The build-id of a kernel of another build.
        banner: The `linux_banner` of such a kernel.
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
    """The kernel that the guest should run.

    Args:
        kernel: The kernel that was started, with its symbols.
        accel: The accelerator of QEMU.
        kaslr: Whether the kernel chooses its own address.
        force: Whether to go on with symbols of another build.
    """

    kernel: Kernel
    accel: Literal["kvm", "tcg"] = "tcg"
    kaslr: bool = False
    force: bool = False


class Identity:
    """Whether the symbols are those of the guest's kernel: the question, until it is answered.

    Args:
        fetch: Executes an MI command, and returns the values in its result.
        warn: Told when symbols of another build are used because of `force`.
    """

    def __init__(self, fetch: Fetch, warn: Callable[[str], None]) -> None:
        self._fetch = fetch
        self._warn = warn
        self._wanted: Wanted | None = None
        self._verdict = Verdict(state="unmapped")
        self._open = False
        self._waiting = False

    def begin(self, wanted: Wanted | None) -> None:
        """Ask anew, for a guest that GDB connects to; None asks nothing."""
        self._wanted = wanted
        self._verdict = Verdict(state="unmapped")
        self._open = wanted is not None
        self._waiting = False

    @property
    def verdict(self) -> Verdict | None:
        """What is known of the kernel in guest memory; None if nobody asked."""
        return None if self._wanted is None else self._verdict

    @property
    def open(self) -> bool:
        """Whether the question is still open."""
        return self._open

    @property
    def waiting(self) -> bool:
        """Whether a breakpoint of our own will stop the guest when its kernel is mapped."""
        return self._waiting

    def settle(self) -> bool:
        """Ask the stopped guest; move the symbols, and breakpoints with them, to where its kernel is.

        Returns:
            Whether the symbols have moved.

        Raises:
            MismatchError: the kernel is of another build, and `force` is not set.
        """
        if self._wanted is None or not self._open:
            return False
        answer = self._fetch(f"-vmd-prove {self._wanted.force:d}", SETTLE_SECONDS)
        self._verdict = msgspec.convert(answer, Verdict, strict=False)
        if self._verdict.state == "other":
            if not self._wanted.force:
                raise mismatch(self._verdict, self._wanted.kernel)
            self._warn(f"using symbols of another build\n{_sides(self._verdict, self._wanted.kernel)}")
        self._open = self._verdict.state not in ("proven", "other")
        return self._verdict.moved

    def wait(self, *, planned: bool) -> bool:
        """Have the guest stop where its kernel is first mapped, unless it is mapped already.

        Args:
            planned: Whether there are breakpoints, which can be placed only then.

        Returns:
            Whether it will stop there.

        Raises:
            StateError: breakpoints are not possible that early.
            MismatchError: as in `settle`.
        """
        self.settle()
        wanted = self._wanted
        if wanted is None or self._verdict.state != "unmapped":
            return False
        command = f"-vmd-wait-kernel {wanted.accel} {wanted.kaslr:d}"
        self._waiting = bool(self._fetch(command, SETTLE_SECONDS)["first"])
        if not self._waiting and wanted.kaslr and wanted.accel == "kvm" and planned:
            facts = arch.by_name(wanted.kernel.arch).debug
            raise StateError(
                f"breakpoints cannot wait for a kernel that KASLR puts in one of {facts.kaslr_places} places:"
                f" KVM has {facts.hardware_breakpoints} hardware breakpoints",
                hint=f"start it without {option('kaslr', True)}, or with {option('accel', 'tcg')};"
                " or set the breakpoints while it runs",
            )
        return self._waiting

    def arrived(self) -> bool:
        """Take out what `wait` set; return whether the guest has stopped there."""
        self._waiting = False
        return bool(self._fetch("-vmd-end-wait-kernel", SETTLE_SECONDS)["reached"] == "1")

    def never_hit(self, entry: Mapping[str, Any], where: str) -> UsageError | None:
        """Return the error for a breakpoint in code that runs before the kernel is mapped; None for others.

        Args:
            entry: GDB's description of it: MI's `bkpt={…}`.
            where: The place that the caller asked for.
        """
        if self._wanted is None:
            return None
        facts = arch.by_name(self._wanted.kernel.arch).debug
        name = self._function(entry)
        if name not in facts.identity_mapped:
            return None
        inside = "" if name == where else f"is in {name}, which "
        at = int(str(entry["addr"]), 16) - self._verdict.slide - int(facts.kernel_map, 16)
        return UsageError(
            f"a breakpoint at {where} is never hit: it {inside}runs before the kernel is mapped, at another"
            " address than its symbol's",
            hint=f"the first function that can be reached is {facts.first_symbols[0]}; under TCG the physical"
            f" address without KASLR, {at:#x}, can be reached too",
        )

    def _function(self, entry: Mapping[str, Any]) -> str:
        """Return the function that a breakpoint is in. For assembly, GDB names the line but no function."""
        address = str(entry.get("addr", ""))
        if "func" in entry or not address.startswith("0x"):
            return str(entry.get("func", ""))
        expression = mi.quote(f"(void (*)(void)) {address}")
        named = self._fetch(f"-data-evaluate-expression {expression}", SETTLE_SECONDS)["value"]
        return str(named).rpartition("<")[2].rstrip(">").partition("+")[0]


def mismatch(verdict: Verdict, kernel: Kernel) -> MismatchError:
    """Return the error for a guest that runs another kernel than that of the symbols."""
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
