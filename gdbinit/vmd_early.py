"""Stops a guest as soon as its kernel is mapped: before that, kernel addresses are not valid."""

from __future__ import annotations

import gdb
import vmd_arch
import vmd_guest
import vmd_slide


class Waiting:
    """The breakpoints that wait until the kernel is mapped; `WAITING` is the only instance."""

    def __init__(self) -> None:
        self._waiters: list[gdb.Breakpoint] = []
        self._disabled: list[gdb.Breakpoint] = []
        self._linked = 0

    def plant(self, accel: str, *, kaslr: bool) -> str:
        """Make the guest stop at the first kernel function that runs at its linked address.

        Under TCG there is no limit on breakpoints, and they are not in guest memory, so each KASLR place gets
        one. Under KVM this takes a hardware breakpoint. The user's own breakpoints in the kernel stay
        disabled until
        then: KVM would write them where no kernel is yet, and one at the same function would be hit twice.

        Args:
            accel: "tcg" or "kvm".
            kaslr: Whether the kernel chooses its own address.

        Returns:
            The function; "" if no breakpoint was set: the vmlinux has no such function, or KVM has too few
            hardware breakpoints.
        """
        self.clear()
        hardware = accel == "kvm"
        arch = vmd_arch.current()
        linked = {name: at for name in arch.first_symbols if (at := vmd_slide.linked(name)) is not None}
        if not linked or (hardware and kaslr):
            return ""
        first, self._linked = next(iter(linked.items()))
        self._disable_others()
        kind = gdb.BP_HARDWARE_BREAKPOINT if hardware else gdb.BP_BREAKPOINT
        for place in range(arch.kaslr_places if kaslr else 1):
            at = self._linked + place * arch.kaslr_step
            waiter = gdb.Breakpoint(f"*{at:#x}", type=kind, internal=True, temporary=True)
            waiter.silent = True
            self._waiters.append(waiter)
        return first

    @property
    def pending(self) -> bool:
        """Whether there are such breakpoints."""
        return bool(self._waiters)

    def reached(self) -> bool:
        """Delete the breakpoints; return whether the guest stopped at one of them."""
        had = bool(self._waiters)
        self.clear()
        pc = vmd_guest.register("pc") if had and vmd_guest.connected() else None
        return pc is not None and vmd_slide.place_of(pc - self._linked) is not None

    def clear(self) -> None:
        """Delete the breakpoints, and enable the user's again."""
        for each in self._waiters:
            if each.is_valid():
                each.delete()
        for each in self._disabled:
            if each.is_valid():
                each.enabled = True
        self._waiters, self._disabled = [], []

    def _disable_others(self) -> None:
        self._disabled = [each for each in gdb.breakpoints() if each.enabled and _in_kernel(each)]
        for each in self._disabled:
            each.enabled = False


def _in_kernel(breakpoint_: gdb.Breakpoint) -> bool:
    """Whether a breakpoint is in the mapped kernel; one at a physical address is not."""
    if breakpoint_.type not in (gdb.BP_BREAKPOINT, gdb.BP_HARDWARE_BREAKPOINT):
        return False
    place = breakpoint_.location or ""
    if not place.startswith("*"):
        return True
    try:
        return int(gdb.parse_and_eval(f"(unsigned long) ({place[1:]})")) >= vmd_arch.current().kernel_map
    except gdb.error:
        return True


WAITING = Waiting()


def await_kernel(accel: str, kaslr: str) -> dict[str, object]:
    """`-vmd-await ACCEL KASLR`: stop the guest once its kernel is mapped; KASLR is 1 or 0."""
    return {"first": WAITING.plant(accel, kaslr=kaslr == "1")}


def awaited() -> dict[str, object]:
    """`-vmd-awaited`: delete those breakpoints; returns whether the guest stopped at one."""
    return {"reached": f"{WAITING.reached():d}"}
