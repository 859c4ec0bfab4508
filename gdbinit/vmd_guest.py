"""What is asked of the guest by more than one command: memory, registers, where the kernel is."""

from __future__ import annotations

import re
from pathlib import Path

import gdb
import vmd_arch
import vmd_elf
import vmd_kgdb
import vmd_memory
import vmd_monitor


def connected() -> bool:
    """Whether GDB has a guest: only then are memory and registers the guest's."""
    thread = gdb.selected_thread()
    return thread is not None and thread.is_valid()


def need_connected() -> None:
    """Refuse to go on without a guest.

    Raises:
        gdb.GdbError: GDB is not connected to one.
    """
    if not connected():
        raise gdb.GdbError("no guest is connected\nconnect one first: target remote SOCKET")


def cpus() -> list[gdb.InferiorThread]:
    """Return the CPUs in order; GDB calls them threads. Over kgdb it is the task that each one runs."""
    if vmd_kgdb.on():
        return vmd_kgdb.cpus()
    return sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num)


def cpu_of(thread: gdb.InferiorThread) -> int:
    """Return the number of a CPU: QEMU numbers its threads from 1."""
    return vmd_kgdb.cpu_of(thread) if vmd_kgdb.on() else thread.num - 1


def memory(address: int, size: int) -> bytes:
    """Return guest memory at a virtual address, as the selected CPU sees it; b"" where nothing is mapped."""
    try:
        return vmd_memory.read(address, size)
    except gdb.MemoryError:
        return b""


def register(name: str) -> int | None:
    """Return a register of the selected CPU; None when QEMU does not offer it."""
    try:
        value = gdb.parse_and_eval(f"${name}")
        return int(value.cast(gdb.lookup_type("unsigned long"))) & (2**64 - 1)
    except gdb.error:
        return None


def text(expression: str) -> str:
    """Return the C string that an expression of the selected frame points to; GDB's words when it cannot."""
    try:
        return gdb.parse_and_eval(expression).string(errors="replace").strip()
    except gdb.error as error:
        return str(error)


def paged() -> bool:
    """Whether the selected CPU has paging on; before that no kernel address means anything."""
    arch = vmd_arch.current()
    control = register(arch.paging_register)
    return control is None or bool(control >> arch.paging_bit & 1)


def exception_handler() -> int | None:
    """Return the guest's handler of exception 0, from its exception table; None when it has none.

    The table is mapped even while user space runs with page-table isolation. QEMU's `info registers`
    tells where it lies.
    """
    if vmd_kgdb.on():
        return None
    try:
        registers = vmd_monitor.ask("info registers")
    except gdb.error:
        return None
    arch = vmd_arch.current()
    tables = [int(table[1], 16) for line in registers if (table := re.match(arch.vectors, line))]
    entry = memory(tables[0], arch.vector_bytes) if tables else b""
    if len(entry) < arch.vector_bytes:
        return None
    return int.from_bytes(b"".join(entry[start:end] for start, end in arch.vector_address), "little")


def kernel_runs() -> bool:
    """Whether a kernel has taken over, whichever it is: exceptions go to the kernel's half."""
    if vmd_kgdb.on():
        return True  # it is what answers
    if not paged():
        return False
    handler = exception_handler()
    return handler is not None and handler >= vmd_arch.current().kernel_map


def accel() -> str:
    """Return what QEMU runs the guest with, "kvm" or "tcg"; "" when nobody has said so in $vmd_accel."""
    value = gdb.convenience_variable("vmd_accel")
    return "" if value is None else value.string()


def has_vmlinux() -> bool:
    """Whether GDB has symbols loaded at all."""
    space = gdb.current_progspace()
    return space is not None and bool(space.filename)


def vmlinux() -> str:
    """Return the path of the vmlinux that GDB has loaded.

    Raises:
        gdb.GdbError: none is.
    """
    space = gdb.current_progspace()
    name = space.filename if space is not None else None
    if not name:
        raise gdb.GdbError("no vmlinux is loaded\nload one first: file VMLINUX")
    if not Path(name).exists():
        raise gdb.GdbError(f"{name} has gone\nload the kernel's vmlinux again: file VMLINUX")
    return name


def vmlinux_sections() -> dict[str, vmd_elf.Section]:
    """Return the sections of the loaded vmlinux.

    Raises:
        gdb.GdbError: none is loaded, or it is not one.
    """
    path = vmlinux()
    try:
        return vmd_elf.sections(path)
    except (OSError, ValueError) as error:
        raise gdb.GdbError(f"{path}: {error}") from error
