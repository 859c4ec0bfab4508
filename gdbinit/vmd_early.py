"""Stops a guest as soon as its kernel is mapped: before that, kernel addresses are not valid."""

from __future__ import annotations

import contextlib

import gdb
import vmd_arch
import vmd_guest
import vmd_slide


class Waiting:
    """Stops the guest once the kernel is mapped; `WAITING` is the only instance."""

    def __init__(self) -> None:
        self._waiter: gdb.Breakpoint | None = None
        self._disabled: list[gdb.Breakpoint] = []
        self._at: int | None = None

    def set(self, accel: str, *, kaslr: bool) -> str:
        """Make the guest stop when its kernel is mapped.

        Without KASLR it stops at the first kernel function that runs at its linked address; under KVM this
        takes a hardware breakpoint. With KASLR it stops, with TCG only, when the kernel first reads or
        writes its own memory, wherever it is, some instructions before that function. The user's own
        breakpoints in the kernel stay disabled until then: KVM would write them to memory that does not
        contain the kernel yet, and one at the same function would be hit twice.

        Args:
            accel: "tcg" or "kvm".
            kaslr: Whether the kernel chooses its own address, and has not done so yet.

        Returns:
            The first function; "" if nothing was set: the vmlinux has no such function, or KVM cannot wait
            for a kernel that moves.
        """
        self.clear()
        arch = vmd_arch.current()
        linked = {name: at for name in arch.first_symbols if (at := vmd_slide.linked(name)) is not None}
        if not linked or (accel == "kvm" and kaslr):
            return ""
        first, at = next(iter(linked.items()))
        self._disable_others()
        if kaslr:
            self._at, self._waiter = None, _watch_kernel_map()
        else:
            self._at = at + vmd_slide.applied()
            kind = gdb.BP_HARDWARE_BREAKPOINT if accel == "kvm" else gdb.BP_BREAKPOINT
            self._waiter = gdb.Breakpoint(f"*{self._at:#x}", type=kind, internal=True, temporary=True)
        self._waiter.silent = True
        return first

    @property
    def pending(self) -> bool:
        """Whether the guest will be stopped."""
        return self._waiter is not None

    def reached(self) -> bool:
        """Delete the breakpoint or watchpoint; return whether it stopped the guest."""
        had = self.pending
        self.clear()
        pc = vmd_guest.register("pc") if had and vmd_guest.connected() else None
        if pc is None or self._at is None:
            return pc is not None and pc >= vmd_arch.current().kernel_map
        return pc == self._at

    def clear(self) -> None:
        """Delete the breakpoint or watchpoint, and enable the user's breakpoints again."""
        if self._waiter is not None and self._at is None:
            # QEMU also drops it when GDB disconnects.
            with contextlib.suppress(gdb.error):
                gdb.execute(f"maint packet z{_kernel_map()}", to_string=True)
        if self._waiter is not None and self._waiter.is_valid():
            self._waiter.delete()
        for each in self._disabled:
            if each.is_valid():
                each.enabled = True
        self._waiter, self._disabled = None, []

    def _disable_others(self) -> None:
        self._disabled = [each for each in gdb.breakpoints() if each.enabled and _in_kernel(each)]
        for each in self._disabled:
            each.enabled = False


def _watch_kernel_map() -> gdb.Breakpoint:
    """Watch all addresses where the kernel can be, which nothing uses before it is mapped.

    QEMU compares watchpoints when it fills a TLB entry, but breakpoints at every jump: a breakpoint for each
    place of KASLR makes a decompressor seven times slower. GDB has no watchpoint of this length that it would
    not read as a whole, so GDB watches the first byte, and a packet the whole range. QEMU reports the start
    of the range that was hit (`gdb_vm_state_change` in its gdbstub), where GDB has its own watchpoint.

    Raises:
        gdb.error: the gdbstub cannot watch a range.
    """
    start = vmd_arch.current().kernel_map
    with gdb.with_parameter("can-use-hw-watchpoints", 1):
        watch = gdb.Breakpoint(
            f"*(char *) {start:#x}", type=gdb.BP_WATCHPOINT, wp_class=gdb.WP_ACCESS, internal=True
        )
    answer = gdb.execute(f"maint packet Z{_kernel_map()}", to_string=True) or ""
    if '"OK"' not in answer:
        watch.delete()
        raise gdb.error(f"the gdbstub cannot watch the kernel's addresses: {answer.strip()}")
    return watch


def _kernel_map() -> str:
    """Return the arguments of the packets that watch all addresses of the kernel, for reads and writes."""
    arch = vmd_arch.current()
    return f"4,{arch.kernel_map:x},{arch.kaslr_step * arch.kaslr_places:x}"


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


def wait_kernel(accel: str, kaslr: str) -> dict[str, object]:
    """`-vmd-wait-kernel ACCEL KASLR`: stop the guest once its kernel is mapped; KASLR is 1 or 0."""
    return {"first": WAITING.set(accel, kaslr=kaslr == "1")}


def end_wait_kernel() -> dict[str, object]:
    """`-vmd-end-wait-kernel`: delete what was set; returns whether the guest stopped for it."""
    return {"reached": f"{WAITING.reached():d}"}
