"""Guest state that several commands read: memory, registers, whether a kernel runs."""

from __future__ import annotations

import re
from pathlib import Path

import gdb
import vmd_arch
import vmd_elf
import vmd_kgdb
import vmd_memory
import vmd_monitor
import vmd_registers


def connected() -> bool:
    """Whether GDB is connected to a guest: without one, it reads memory from the vmlinux."""
    thread = gdb.selected_thread()
    return thread is not None and thread.is_valid()


def need_connected() -> None:
    """Check that GDB is connected to a guest.

    Raises:
        gdb.GdbError: it is not.
    """
    if not connected():
        raise gdb.GdbError("GDB is not connected to a guest\nconnect first: target remote SOCKET")


def cpus() -> list[gdb.InferiorThread]:
    """Return the CPUs in order, as GDB's threads. Over kgdb, each is the task that the CPU runs."""
    if vmd_kgdb.on():
        return vmd_kgdb.cpus()
    return sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num)


def cpu_of(thread: gdb.InferiorThread) -> int:
    """Return the CPU number of a thread: QEMU numbers its threads from 1."""
    return vmd_kgdb.cpu_of(thread) if vmd_kgdb.on() else thread.num - 1


def memory(address: int, size: int) -> bytes:
    """Return guest memory at a virtual address, as the selected CPU maps it; b"" if any of it is unmapped."""
    try:
        return vmd_memory.read(address, size)
    except gdb.MemoryError:
        return b""


def register(name: str) -> int | None:
    """Return a register of the selected CPU; None if QEMU does not provide it."""
    try:
        value = gdb.parse_and_eval(f"${name}")
        return int(value.cast(vmd_registers.word())) & (2**64 - 1)
    except gdb.error:
        return None


def text(expression: str) -> str:
    """Return the C string that an expression in the selected frame points to, or GDB's error message."""
    try:
        return gdb.parse_and_eval(expression).string(errors="replace").strip()
    except gdb.error as error:
        return str(error)


def paged() -> bool:
    """Whether paging is on in the selected CPU; before that, kernel addresses are not mapped."""
    arch = vmd_arch.current()
    control = register(arch.paging_register)
    return control is None or bool(control >> arch.paging_bit & 1)


def exception_handler() -> int | None:
    """Return the address of the guest's handler of exception 0, from its exception table; None if unknown.

    The table is mapped even while user space runs with page-table isolation. QEMU's `info registers` gives
    its address.
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
    """Whether a kernel, of whichever build, is mapped and handles exceptions."""
    if vmd_kgdb.on():
        return True  # the kernel itself answers
    if not paged():
        return False
    handler = exception_handler()
    return handler is not None and handler >= vmd_arch.current().kernel_map


def accel() -> str:
    """Return the accelerator in $vmd_accel, "kvm" or "tcg"; "" if that is not set."""
    value = gdb.convenience_variable("vmd_accel")
    return "" if value is None else value.string()


def release() -> str:
    """Return the kernel's `uname -r`, from its banner; "" if it cannot be read."""
    banner = text("(char *) &linux_banner")
    found = re.match(r"Linux version (\S+)", banner)
    return found[1] if found else ""


def tell_accel(name: str) -> dict[str, object]:
    """`-vmd-accel ACCEL`: set $vmd_accel."""
    gdb.set_convenience_variable("vmd_accel", name)
    return {}


def has_vmlinux() -> bool:
    """Whether a vmlinux is loaded."""
    space = gdb.current_progspace()
    return space is not None and bool(space.filename)


def vmlinux() -> str:
    """Return the path of the vmlinux that GDB has loaded.

    Raises:
        gdb.GdbError: none is loaded.
    """
    space = gdb.current_progspace()
    name = space.filename if space is not None else None
    if not name:
        raise gdb.GdbError("no vmlinux is loaded\nload one first: file VMLINUX")
    if not Path(name).exists():
        raise gdb.GdbError(f"{name} does not exist any more\nload the kernel's vmlinux again: file VMLINUX")
    return name


def vmlinux_sections() -> dict[str, vmd_elf.Section]:
    """Return the sections of the loaded vmlinux.

    Raises:
        gdb.GdbError: none is loaded, or it is not an ELF file.
    """
    path = vmlinux()
    try:
        return vmd_elf.sections(path)
    except (OSError, ValueError) as error:
        raise gdb.GdbError(f"{path}: {error}") from error
