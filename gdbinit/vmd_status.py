"""Shows what GDB is attached to, and whether its symbols match."""

from __future__ import annotations

import gdb
import vmd_bt_all
import vmd_guest
import vmd_identity
import vmd_slide


class Status(gdb.Command):
    """Show what GDB is attached to: vmd-status.

    Prints the running kernel's release, the KASLR slide, whether the build-id of vmlinux is
    the one in guest memory, and where each CPU is.

    Example: vmd-status
    """

    NAME = "vmd-status"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STATUS)

    def invoke(self, _argument: str, _from_tty: bool) -> None:
        """Print one fact a line."""
        vmd_guest.need_connected()
        for name, fact in (*_facts(), *_cpus()):
            print(f"{name:<10} {fact}")


def _facts() -> list[tuple[str, str]]:
    path = vmd_guest.vmlinux()
    facts = [("vmlinux", path), ("build-id", vmd_identity.build_id() or "none")]
    found = vmd_slide.find()
    if found is None:
        return [*facts, ("kernel", _no_kernel())]
    proof = f"proven by its {found.how}" if found.proven else "not proven: its data is not mapped on this CPU"
    note = "" if found.slide == vmd_slide.applied() else "; the symbols are not there yet: vmd-slide --apply"
    return [*facts, ("kernel", f"{_release()}, {proof}"), ("slide", f"{found.slide:#x}{note}")]


def _no_kernel() -> str:
    if not vmd_guest.kernel_runs():
        return "not mapped yet"
    other = vmd_slide.other_kernel()
    if other is None:
        return "not that of the vmlinux"
    return f"not that of the vmlinux: build-id {other.build_id or 'not found'}, {other.banner}"


def _release() -> str:
    return vmd_guest.release() or "release unknown"


def _cpus() -> list[tuple[str, str]]:
    with vmd_bt_all.selection_kept():
        return [(f"CPU {vmd_guest.cpu_of(thread)}", _position(thread)) for thread in vmd_guest.cpus()]


def _position(thread: gdb.InferiorThread) -> str:
    thread.switch()
    frame = gdb.newest_frame()
    place = frame.find_sal()
    line = f", {place.symtab.filename}:{place.line}" if place.symtab is not None else ""
    return f"{frame.pc():#x} in {frame.name() or '??'}{line}"
