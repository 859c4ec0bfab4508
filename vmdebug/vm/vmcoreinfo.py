"""What a kernel tells programs that read its memory from outside, as text: vmcoreinfo.

See Documentation/admin-guide/kdump/vmcoreinfo.rst of the kernel. QEMU has it from the guest's fw_cfg driver;
a kernel without that driver has the text in its memory, and one without CONFIG_VMCORE_INFO has none.
"""

from __future__ import annotations

import re

from vmdebug import arch
from vmdebug.guest import Kernel
from vmdebug.kimage import symbols
from vmdebug.vm import kernel_address
from vmdebug.vm.kernel_address import Qmp

_DATA, _SIZE = "vmcoreinfo_data", "vmcoreinfo_size"
"""`static unsigned char *vmcoreinfo_data` and `static size_t vmcoreinfo_size` of kernel/vmcore_info.c."""

_LARGEST = 64 << 10
"""More than VMCOREINFO_BYTES of any kernel, which is a page."""

_START = b"OSRELEASE="

_PAGE_TABLE, _PHYSICAL_BASE = "init_top_pgt", "phys_base"
"""The top of the kernel's page table, and the physical address that the kernel image was moved by; see
arch_crash_save_vmcoreinfo of arch/x86/kernel/vmcore_info_64.c."""

_CR4 = re.compile(r"\bCR4=([0-9a-f]+)")
_FIVE_LEVELS = 1 << 12
"""CR4.LA57: Intel SDM volume 3, 2.5."""

_SYMBOLS = ("init_uts_ns", "_stext", "linux_banner", "node_online_map")
_BYTES = 8


def read(qmp: Qmp, kernel: Kernel, *, kaslr: bool, force: bool = False) -> bytes:
    """Return the kernel's vmcoreinfo from guest memory, or else what vmdebug knows itself, in the same form.

    Args:
        qmp: Executes QMP commands of the VM.
        kernel: The kernel that runs, with its vmlinux.
        kaslr: Whether it chooses its own address.
        force: Whether to go on with a kernel of another build.

    Raises:
        StateError: KASLR has not chosen the address yet.
        MismatchError: the kernel is from another build, and `force` is not set.
        UsageError: the vmlinux is damaged.
    """
    assert kernel.vmlinux is not None  # noqa: S101 - for the type checker
    slide = kernel_address.slide(qmp, kernel.vmlinux, arch.by_name(kernel.arch), kaslr=kaslr, force=force)
    return _own(qmp, kernel, slide) or _known(qmp, kernel, slide)


def _own(qmp: Qmp, kernel: Kernel, slide: int) -> bytes:
    address, size = (_number(qmp, kernel, name, slide) for name in (_DATA, _SIZE))
    if not address or not 0 < size <= _LARGEST:
        return b""
    found = kernel_address.read(qmp, address, size)
    return found if found.startswith(_START) else b""


def _known(qmp: Qmp, kernel: Kernel, slide: int) -> bytes:
    control = _CR4.search(kernel_address.registers(qmp))
    five_levels = control is not None and int(control[1], 16) & _FIVE_LEVELS
    lines = [f"OSRELEASE={kernel.release}"]
    lines += [f"BUILD-ID={kernel.build_id}"] * bool(kernel.build_id)
    lines.append("PAGESIZE=4096")
    lines += [f"SYMBOL({name})={at + slide:x}" for name in _SYMBOLS if (at := _linked(kernel, name))]
    table = _linked(kernel, _PAGE_TABLE) + slide
    physical = _number(qmp, kernel, _PHYSICAL_BASE, slide)
    lines += [
        f"SYMBOL(swapper_pg_dir)={table:x}",
        f"NUMBER({_PHYSICAL_BASE})={physical}",
        f"SYMBOL({_PAGE_TABLE})={table:x}",
        f"NUMBER(pgtable_l5_enabled)={int(bool(five_levels))}",
        f"KERNELOFFSET={slide:x}",
        f"NUMBER(KERNEL_IMAGE_SIZE)={1 << 30}",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _linked(kernel: Kernel, name: str) -> int:
    """Return the linked address of a symbol; 0 if there is none, or several."""
    assert kernel.vmlinux is not None  # noqa: S101 - for the type checker
    places = symbols.addresses(kernel.vmlinux, name)
    return places[0] if len(places) == 1 else 0


def _number(qmp: Qmp, kernel: Kernel, name: str, slide: int) -> int:
    """Return an unsigned number of 8 bytes of the kernel; 0 if it has none of that name."""
    at = _linked(kernel, name)
    return int.from_bytes(kernel_address.read(qmp, at + slide, _BYTES), "little") if at else 0
