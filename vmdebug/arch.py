"""The differences between architectures: one frozen row for each, read from `gdbinit/arches/`.

A row is a JSON file, because GDB needs it too and cannot import vmdebug. vmdebug passes the `debug` part to
each GDB that it starts; if a user sources `vmdebug.gdb`, GDB reads the file itself. See
`gdbinit/vmd_arch.py`. The file's `sources` name the source of each fact.

To support another architecture, add its file, a reader of its boot image's format to `vmdebug.kimage`, and
a configuration fragment to `kconfigs/`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from vmdebug import shipped
from vmdebug.errors import HostError, UsageError

Hex = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-f]+$")]
"""An address or a size; JSON has no hexadecimal numbers."""


class PatchedText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table in vmlinux of the instructions that the kernel rewrites when it boots or runs.

    Args:
        what: What such an instruction is, for messages.
        start: The symbol of the table's start.
        stop: The symbol of its end.
        entry: The C type of its entries, which begin with the address of an instruction.
        relative: Whether this address is a signed 32-bit distance from the entry.
        length: The field with the number of rewritten bytes; "": only one instruction is rewritten.
        done: The variable that is not 0 once the kernel has rewritten them for the last time; "": it always
            may again.
    """

    what: str
    start: str
    stop: str
    entry: str
    relative: bool = True
    length: str = ""
    done: str = ""


class Debug(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The facts about an architecture's kernel in memory: the part of a row that GDB needs.

    `gdbinit/vmd_arch.py` has the same fields: it cannot import this module, and any other GDB uses it too.
    Registers have GDB's names.

    Args:
        name: See `Arch`.
        gdb_names: GDB's names of the architecture, as printed by `show architecture`.
        first_symbols: Functions that run at their linked address early on, the first usable one first. The
            code before them runs identity-mapped, so breakpoints at its linked addresses are never hit.
        identity_mapped: Functions that run identity-mapped and nowhere else.
        hardware_breakpoints: Number of hardware breakpoints that KVM supports.
        breakpoint_kind: The kind in `Z0` packets, which is the length of the breakpoint instruction.
        kernel_map: The difference between a kernel symbol's address and its physical address without KASLR;
            kernels are linked above it.
        kaslr_step: The KASLR offset is a multiple of this number of bytes.
        kaslr_places: Number of possible KASLR offsets.
        first_accesses: Addresses of data that the kernel reads just after it is mapped, for each paging mode;
            watchpoints there stop a moved kernel under KVM.
        first_accesses_roms: Parts of the names of the boot ROMs that place the data there.
        zero_based_below: A per-CPU variable linked below this address is relative to zero, not to the kernel.
        per_cpu_register: The register with the CPU's per-CPU offset in the kernel.
        paging_register: The register that shows whether paging is enabled.
        paging_bit: The number of that bit.
        vectors: Regular expression that finds the exception table's address in QEMU's `info registers`.
        vector_bytes: Size of the table's first entry.
        vector_address: The slices of that entry that form the handler's address, the lowest bits first.
        first_vector: The symbol of that handler.
        early_vector: The symbol of the handler that the entry has until the kernel has set up its traps.
        pc: The program counter.
        sp: The stack pointer.
        result: The register in which a function returns a number or a pointer.
        arguments: The registers of the first arguments.
        return_address_bytes: Size of the return address on the stack at a function's return instruction.
        calls: Regular expression for the instructions that call, as GDB disassembles them.
        returns: Regular expression for the mnemonics that return.
        jumps: Regular expression for the mnemonics of other instructions that may leave a function.
        return_thunks: Functions that a kernel with mitigations jumps to in order to return.
        frame_pointer: The register with the address of a function's frame, in kernels with
            CONFIG_FRAME_POINTER.
        frame_push: The instruction that saves the caller's, in hexadecimal.
        frame_set: The instruction after which it has the address of the frame.
        frame_pops: The instructions that restore the caller's.
        exception_entry: Regular expression for the start of the names of the functions that save a
            `struct pt_regs` and then call C.
        pt_regs: The registers in `struct pt_regs`, in its order, 8 bytes each.
        unwound: The registers among them that a backtrace restores.
        mode_register: The register that shows whether user space was interrupted.
        user_mode: The bits in it that show this.
        switch_frame: The struct at `task->thread.sp` of a sleeping task.
        switch_registers: The registers that its fields contain.
        patched_text: The tables of instructions that the kernel rewrites.
    """

    name: str
    gdb_names: tuple[str, ...]
    first_symbols: tuple[str, ...]
    identity_mapped: tuple[str, ...]
    hardware_breakpoints: int
    breakpoint_kind: int
    kernel_map: Hex
    kaslr_step: Hex
    kaslr_places: int
    first_accesses: tuple[Hex, ...]
    first_accesses_roms: tuple[str, ...]
    zero_based_below: Hex
    per_cpu_register: str
    paging_register: str
    paging_bit: int
    vectors: str
    vector_bytes: int
    vector_address: tuple[tuple[int, int], ...]
    first_vector: str
    early_vector: str
    pc: str
    sp: str
    result: str
    arguments: tuple[str, ...]
    return_address_bytes: int
    calls: str
    returns: str
    jumps: str
    return_thunks: tuple[str, ...]
    frame_pointer: str
    frame_push: str
    frame_set: str
    frame_pops: tuple[str, ...]
    exception_entry: str
    pt_regs: tuple[str, ...]
    unwound: tuple[str, ...]
    mode_register: str
    user_mode: int
    switch_frame: str
    switch_registers: dict[str, str]
    patched_text: tuple[PatchedText, ...]


class Branch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instruction that returns, or that jumps or calls at a distance from its own end.

    Args:
        code: Its first bytes, in hex.
        mask: The bits of them that count.
        at: Where the distance begins, in bytes.
        size: The size of the distance in bytes; 0: it returns.
    """

    code: str
    mask: str
    at: int = 0
    size: int = 0


class Arch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One architecture, by its names in the tools that vmdebug drives.

    Args:
        name: As `uname -m` and `Kernel.arch` have it.
        elf_machine: `e_machine` of its vmlinux, by pyelftools' name.
        qemu: QEMU's system emulator.
        qemu_package: The Debian package that has it.
        machine: QEMU's `-machine` type for guests whose command line is ours.
        ram_id: What QEMU calls the RAM of that machine type; a saved state finds its RAM by this name.
        cpu: QEMU's `-cpu` for TCG; KVM takes `host`.
        cpu_per_socket: Whether each CPU needs a socket of its own.
        kvm_flags: One of these flags must be in /proc/cpuinfo for KVM to work; empty: no flag tells.
        kvm_modules: The host's kernel modules that have KVM; empty where it is built in.
        source: The architecture's directory in the kernel's source.
        image: The boot image, relative to a build tree.
        image_target: The target of `make` that builds it.
        image_format: Its format, a key of `vmdebug.kimage.FORMATS`.
        fragment: The fragment in `kconfigs/` that selects the architecture.
        console: The kernel's name of the first serial port.
        console_device: Major and minor number of its device node; see Documentation/admin-guide/devices.txt.
        second_serial: QEMU's `-device` for a serial port that nobody else uses, without its chardev.
        second_console: The kernel's name of that port.
        early_console: The kernel parameter that shows messages before the console's driver runs.
        parameters: Kernel parameters that keep this architecture's kernel from taking a stop in the debugger
            for a fault, or that of a QEMU that waits for a CPU of the host: a boot then ended with "IO-APIC +
            timer doesn't work!" (`timer_irq_works` of arch/x86/kernel/apic/io_apic.c).
        dead_cpu: Regular expression for a CPU in QEMU's `info registers` that has halted with interrupts
            disabled, so that only a reset wakes it.
        uefi: Where distributions install a UEFI firmware for QEMU.
        uefi_beside_qemu: Where QEMU installs its own, relative to its prefix.
        uefi_package: The Debian package that has one.
        dwarf_registers: GDB's names of the registers, by their numbers in DWARF.
        fetch_registers: The names of the same registers in the kernel's kprobe events.
        fetch_arguments: Those of them that have the arguments of a function, in order.
        function_exits: The instructions that leave a function.
        conditional_jumps: The conditional jumps; `at` and `size` tell their distances.
        direct_calls: The calls of a function at a fixed distance; `at` and `size` tell their distances.
        user_per_cpu_register: The register with the CPU's per-CPU offset while user space runs.
        debug: What GDB gets.
        sources: What facts rest on, by field, for whoever changes the file.
    """

    name: str
    elf_machine: str
    qemu: str
    qemu_package: str
    machine: str
    ram_id: str
    cpu: str
    cpu_per_socket: bool
    kvm_flags: tuple[str, ...]
    kvm_modules: tuple[str, ...]
    source: str
    image: str
    image_target: str
    image_format: str
    fragment: str
    console: str
    console_device: tuple[int, int]
    second_serial: str
    second_console: str
    early_console: str
    parameters: tuple[str, ...]
    dead_cpu: str
    uefi: tuple[str, ...]
    uefi_beside_qemu: str
    uefi_package: str
    dwarf_registers: tuple[str, ...]
    fetch_registers: tuple[str, ...]
    fetch_arguments: tuple[str, ...]
    function_exits: tuple[Branch, ...]
    conditional_jumps: tuple[Branch, ...]
    direct_calls: tuple[Branch, ...]
    user_per_cpu_register: str
    debug: Debug
    sources: dict[str, str] = {}


@functools.cache
def rows() -> tuple[Arch, ...]:
    """Return the row of each supported architecture, sorted by name."""
    return tuple(map(_read, sorted((shipped.gdbinit() / "arches").glob("*.json"))))


def by_name(name: str) -> Arch:
    """Return the row of that name.

    Raises:
        UsageError: vmdebug has no row for it.
    """
    return _only(lambda row: row.name == name, name)


def by_elf_machine(machine: str) -> Arch:
    """Return the row of an ELF file's `e_machine`.

    Raises:
        UsageError: vmdebug has no row for it.
    """
    return _only(lambda row: row.elf_machine == machine, machine)


def by_image_format(name: str) -> Arch:
    """Return the row of the architecture whose boot image has that format.

    Raises:
        UsageError: vmdebug has no row for it.
    """
    return _only(lambda row: row.image_format == name, name)


def native() -> Arch:
    """Return the row of the machine that this runs on.

    Raises:
        HostError: vmdebug has no row for it.
    """
    machine = os.uname().machine
    try:
        return by_name(machine)
    except UsageError as error:
        raise HostError(
            f"this machine is {machine}, and vmdebug has {error.message}", hint=error.hint
        ) from None


def for_gdb(row: Arch) -> dict[str, Any]:
    """Return the part of a row that GDB gets, as `vmd_preload.start` takes it."""
    return msgspec.to_builtins(row.debug)  # type: ignore[no-any-return]


def _read(path: Path) -> Arch:
    return msgspec.json.decode(path.read_bytes(), type=Arch)


def _only(fits: Callable[[Arch], bool], wanted: str) -> Arch:
    for row in rows():
        if fits(row):
            return row
    known = ", ".join(row.name for row in rows())
    raise UsageError(f"no support for {wanted} kernels", hint=f"supported: {known}")
