"""What differs between architectures, one frozen row each."""

from __future__ import annotations

from dataclasses import dataclass

from vmdebug.errors import UsageError


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture, by its names in the tools that vmdebug drives.

    Args:
        name: As the kernel's `ARCH=` and GDB's scripts call it.
        elf_machine: `e_machine` of its vmlinux, by pyelftools' name.
        qemu: QEMU's system emulator.
        machine: QEMU's `-machine` type for guests whose command line is ours.
        cpu: QEMU's `-cpu` for TCG; KVM takes `host`.
        image: The boot image, relative to a build tree.
        console: The kernel's name of the first serial port.
        first_symbols: Symbols that run at their linked address early on, the first
            usable one first. The reset vector and `startup_64` run identity-mapped:
            a breakpoint at their linked address is never hit.
        identity_mapped: Functions that run there and nowhere else.
        hardware_breakpoints: How many KVM can hold at once.
        kvm_flags: Of these flags in /proc/cpuinfo one must be there for KVM to work.
    """

    name: str
    elf_machine: str
    qemu: str
    machine: str
    cpu: str
    image: str
    console: str
    first_symbols: tuple[str, ...]
    identity_mapped: tuple[str, ...]
    hardware_breakpoints: int
    kvm_flags: tuple[str, ...]


X86_64 = Arch(
    name="x86_64",
    elf_machine="EM_X86_64",
    qemu="qemu-system-x86_64",
    machine="q35",
    cpu="max",
    image="arch/x86/boot/bzImage",
    console="ttyS0",
    first_symbols=("x86_64_start_kernel", "start_kernel"),
    # head_64.S and head64.c; secondary_startup_64 is not one: other CPUs come there with the kernel mapped.
    identity_mapped=(
        "startup_32",
        "startup_64",
        "startup_64_setup_env",
        "startup_64_load_idt",
        "__startup_64",
        "sme_enable",
        "sme_encrypt_kernel",
    ),
    hardware_breakpoints=4,
    kvm_flags=("vmx", "svm"),
)

ARCHES = (X86_64,)


def by_name(name: str) -> Arch:
    """Return the row of that name.

    Raises:
        UsageError: vmdebug has no row for it.
    """
    for row in ARCHES:
        if row.name == name:
            return row
    raise _unknown(name)


def by_elf_machine(machine: str) -> Arch:
    """Return the row of an ELF file's `e_machine`.

    Raises:
        UsageError: vmdebug has no row for it.
    """
    for row in ARCHES:
        if row.elf_machine == machine:
            return row
    raise _unknown(machine)


def _unknown(name: str) -> UsageError:
    known = ", ".join(row.name for row in ARCHES)
    return UsageError(f"no support for {name} kernels", hint=f"supported: {known}")
