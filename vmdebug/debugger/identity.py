"""Checks that the symbols belong to the kernel in guest memory, and moves them to its address.

`gdbinit/` finds the kernel and moves the symbols; this module decides when, and what the result means. Before
the kernel's first instruction there is nothing to compare. The comparison is made when the kernel is mapped,
which is when it first runs at the addresses of its symbols.
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
"""How long GDB may take to find the kernel, and to load its symbols again at its KASLR address."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The result of the comparison with the kernel in guest memory; see `gdbinit/vmd_identity.py`.

    Args:
        state: "proven": it is the kernel of the symbols. "placed": it is at the address of that kernel, but
            its data cannot be read at this point. "other": it is from another build. "unknown": it runs, but
            cannot be identified at this point. "unmapped": there is no kernel yet.
        slide: Bytes by which KASLR moved the kernel, and the symbols with it.
        moved: Whether this comparison has moved the symbols.
        how: How the kernel was found.
        build_id: The build-id of the symbols, in hex; "" if they have none, or it was not needed.
        theirs: The build-id of a kernel from another build.
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
        force: Whether to continue with symbols from another build.
    """

    kernel: Kernel
    accel: Literal["kvm", "tcg"] = "tcg"
    kaslr: bool = False
    force: bool = False


class Identity:
    """Compares the symbols with the guest's kernel, as soon as that is possible.

    Args:
        fetch: Executes an MI command, and returns the values in its result.
        warn: Called when symbols from another build are used because of `force`.
    """

    def __init__(self, fetch: Fetch, warn: Callable[[str], None]) -> None:
        self._fetch = fetch
        self._warn = warn
        self._wanted: Wanted | None = None
        self._verdict = Verdict(state="unmapped")
        self._open = False
        self._waiting = False

    def begin(self, wanted: Wanted | None) -> None:
        """Restart for a guest that GDB connects to; None: do not compare."""
        self._wanted = wanted
        self._verdict = Verdict(state="unmapped")
        self._open = wanted is not None
        self._waiting = False
        if self._under_kvm:
            self._fetch("-vmd-accel kvm", SETTLE_SECONDS)

    @property
    def verdict(self) -> Verdict | None:
        """The result of the last comparison; None if none is requested."""
        return None if self._wanted is None else self._verdict

    @property
    def open(self) -> bool:
        """Whether the comparison has no final result yet."""
        return self._open

    @property
    def waiting(self) -> bool:
        """Whether the guest will be stopped when its kernel is mapped."""
        return self._waiting

    def settle(self) -> bool:
        """Compare the stopped guest's kernel with the symbols, and move them and the breakpoints to it.

        Returns:
            Whether the symbols have moved.

        Raises:
            MismatchError: the kernel is from another build, and `force` is not set.
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
        """Make the guest stop when its kernel is mapped, unless it is already mapped.

        Args:
            planned: Whether there are breakpoints; they get their addresses then.

        Returns:
            Whether it will stop.

        Raises:
            StateError: breakpoints are not possible that early.
            MismatchError: see `settle`.
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
                " KVM finds it only if it comes from QEMU's -kernel and SeaBIOS loads it",
                hint=f"start it without {option('kaslr', True)}, or with {option('accel', 'tcg')};"
                " or set the breakpoints while it runs",
            )
        return self._waiting

    def arrived(self) -> bool:
        """Take out what `wait` set; return whether the guest has stopped there."""
        self._waiting = False
        return bool(self._fetch("-vmd-end-wait-kernel", SETTLE_SECONDS)["reached"] == "1")

    def need_hardware(self, number: int) -> bool:
        """Whether the kernel rewrites the code at a software breakpoint, which under KVM is in that code.

        Args:
            number: GDB's number of the breakpoint.
        """
        return (
            self._under_kvm and self._fetch(f"-vmd-need-hardware {number}", SETTLE_SECONDS)["rewritten"] != ""
        )

    @property
    def _under_kvm(self) -> bool:
        return self._wanted is not None and self._wanted.accel == "kvm"

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
        first = facts.first_symbols[0]
        if name == first and self._wanted.kaslr and self._wanted.accel == "kvm" and self._open:
            return UsageError(
                f"a breakpoint at {where} is never hit: under KVM a kernel that KASLR moves is found only"
                f" when it is in {first}",
                hint=f"the first function that can be reached is {facts.first_symbols[-1]}",
            )
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
