"""Stops a guest as soon as its kernel is mapped: before that, kernel addresses are not valid."""

from __future__ import annotations

import contextlib

import gdb
import vmd_arch
import vmd_guest
import vmd_monitor
import vmd_slide


class Waiting:
    """Stops the guest once the kernel is mapped; `WAITING` is the only instance."""

    def __init__(self) -> None:
        self.passed = ""
        """The first function, if the guest has stopped in it, too late for a breakpoint at its beginning."""
        self._waiters: list[gdb.Breakpoint] = []
        self._disabled: list[gdb.Breakpoint] = []
        self._at: int | None = None
        self._first = ""
        self._stopped_at: int | None = None

    def set(self, accel: str, *, kaslr: bool) -> str:
        """Make the guest stop when its kernel is mapped.

        Without KASLR it stops at the first kernel function that runs at its linked address; under KVM this
        takes a hardware breakpoint. With KASLR it stops under TCG when the kernel first reads or writes its
        own memory, wherever it is, some instructions before that function; under KVM in that function, with
        `first_accesses` of the architecture. The user's own breakpoints in the kernel stay disabled until
        then: KVM would write them to memory that does not contain the kernel yet, and one at the same
        function would be hit twice.

        Args:
            accel: "tcg" or "kvm".
            kaslr: Whether the kernel chooses its own address, and has not done so yet.

        Returns:
            The first function; "" if nothing was set: the vmlinux has no such function, or under KVM the
            firmware is another one than `first_accesses` are for.
        """
        self.clear()
        arch = vmd_arch.current()
        linked = {name: at for name in arch.first_symbols if (at := vmd_slide.linked(name)) is not None}
        hardware = accel != "tcg"
        if not linked or (hardware and kaslr and not _roms_have(arch.first_accesses_roms)):
            return ""
        self._first, at = next(iter(linked.items()))
        self._disable_others()
        if kaslr:
            self._at = None
            self._waiters = _watch_first_accesses() if hardware else [_watch_kernel_map()]
        else:
            self._at = at + vmd_slide.applied()
            kind = gdb.BP_HARDWARE_BREAKPOINT if hardware else gdb.BP_BREAKPOINT
            self._waiters = [gdb.Breakpoint(f"*{self._at:#x}", type=kind, internal=True, temporary=True)]
        for each in self._waiters:
            each.silent = True
        return self._first

    @property
    def pending(self) -> bool:
        """Whether the guest will be stopped."""
        return bool(self._waiters)

    def reached(self) -> bool:
        """Delete what was set; return whether the guest stopped for it."""
        had, watched = self.pending, len(self._waiters) > 1
        self.clear()
        pc = vmd_guest.register("pc") if had and vmd_guest.connected() else None
        if pc is None or self._at is None:
            mapped = pc is not None and pc >= vmd_arch.current().kernel_map
            self.passed = self._first if mapped and watched else ""
            return mapped
        self._stopped_at = pc if pc == self._at else None
        return pc == self._at

    def is_here(self, breakpoint_: gdb.Breakpoint) -> bool:
        """Whether the guest has stopped at this breakpoint, and not run since: GDB would step over it."""
        places = [place.address for place in breakpoint_.locations]
        return self._stopped_at in places and self._stopped_at == vmd_guest.register("pc")

    def clear(self) -> None:
        """Delete the breakpoint or watchpoints, and enable the user's breakpoints again."""
        if len(self._waiters) == 1 and self._at is None:
            # QEMU also drops it when GDB disconnects.
            with contextlib.suppress(gdb.error):
                gdb.execute(f"maint packet z{_kernel_map()}", to_string=True)
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


def _watch(address: str) -> gdb.Breakpoint:
    """Watch a byte, for reads and writes, with a hardware watchpoint."""
    with gdb.with_parameter("can-use-hw-watchpoints", 1):
        return gdb.Breakpoint(
            f"*(char *) {address}", type=gdb.BP_WATCHPOINT, wp_class=gdb.WP_ACCESS, internal=True
        )


def _watch_first_accesses() -> list[gdb.Breakpoint]:
    return [_watch(address) for address in vmd_arch.current().first_accesses]


def _roms_have(names: tuple[str, ...]) -> bool:
    """Whether QEMU has loaded ROMs with all of these in their names."""
    try:
        roms = " ".join(vmd_monitor.ask("info roms"))
    except gdb.error:  # another gdbstub than QEMU's
        return False
    return all(name in roms for name in names)


def _watch_kernel_map() -> gdb.Breakpoint:
    """Watch all addresses where the kernel can be, which nothing uses before it is mapped.

    QEMU compares watchpoints when it fills a TLB entry, but breakpoints at every jump: a breakpoint for each
    place of KASLR makes a decompressor seven times slower. GDB has no watchpoint of this length that it would
    not read as a whole, so GDB watches the first byte, and a packet the whole range. QEMU reports the start
    of the range that was hit (`gdb_vm_state_change` in its gdbstub), where GDB has its own watchpoint.

    Raises:
        gdb.error: the gdbstub cannot watch a range.
    """
    watch = _watch(f"{vmd_arch.current().kernel_map:#x}")
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

KASLR_KVM = (
    "KASLR moves this kernel, and KVM cannot stop this guest when it is mapped: that needs a kernel from"
    " QEMU's -kernel, loaded by SeaBIOS\n"
    "start the guest without --kaslr or with --accel tcg; or continue, interrupt, then: vmd-slide --apply"
)
"""The error if `set` cannot stop a kernel that KASLR moves."""


def run() -> bool:
    """Run the guest to where `WAITING` stops it, and show nothing; return whether it stopped there."""
    try:
        gdb.execute("continue", to_string=True)
    finally:
        reached = WAITING.reached()
    return reached


def unmapped() -> bool:
    """Whether no kernel is mapped yet. This asks the first CPU: the others enable paging later."""
    selected = gdb.selected_thread()
    if selected is None:
        return True
    try:
        vmd_guest.cpus()[0].switch()
        return not vmd_slide.kernel_mapped()
    finally:
        selected.switch()


def wait_kernel(accel: str, kaslr: str) -> dict[str, object]:
    """`-vmd-wait-kernel ACCEL KASLR`: stop the guest once its kernel is mapped; KASLR is 1 or 0."""
    return {"first": WAITING.set(accel, kaslr=kaslr == "1")}


def end_wait_kernel() -> dict[str, object]:
    """`-vmd-end-wait-kernel`: delete what was set; returns whether the guest stopped for it."""
    return {"reached": f"{WAITING.reached():d}"}
