"""Finds where KASLR has put the running kernel, and that it is the one of the symbols, without a GDB.

QEMU's monitor gives the registers and reads memory; see "human-monitor-command" in the QMP reference. The
exception table gives the address, as in `gdbinit/vmd_slide.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vmdebug import kimage
from vmdebug.arch import Arch, Debug
from vmdebug.errors import MismatchError, QmpError, StateError
from vmdebug.kimage import symbols

_BANNER = "linux_banner"
_PREFIX = b"Linux version "
_WORDS = re.compile(r"0x([0-9a-f]{2})\b")


Qmp = Callable[..., Any]
"""Executes a QMP command, with its arguments as keywords, and returns its result: `Vm.qmp`."""


def slide(qmp: Qmp, vmlinux: Path, row: Arch, *, kaslr: bool, force: bool) -> int:
    """Return how far KASLR has moved the running kernel, in bytes.

    Args:
        qmp: Executes QMP commands of the VM.
        vmlinux: The symbols.
        row: The architecture.
        kaslr: Whether the kernel chooses its own address.
        force: Whether to go on with a kernel of another build.

    Raises:
        StateError: KASLR has not chosen the address yet.
        MismatchError: the kernel is from another build, and `force` is not set.
        UsageError: the vmlinux is damaged.
    """
    handler = _handler(qmp, row.debug)
    moved = _moved(handler, vmlinux, row.debug)
    if moved is None:
        if handler >= int(row.debug.kernel_map, 16) and not force:
            raise _other(vmlinux, "its exception handlers are at other addresses")
        if kaslr:
            raise StateError(
                "KASLR has not chosen the kernel's address yet",
                hint="let the guest run first, or start it without KASLR",
            )
        return 0
    if not force:
        _check(qmp, vmlinux, moved)
    return moved


def _check(qmp: Qmp, vmlinux: Path, moved: int) -> None:
    """Compare the kernel's version in guest memory, if it can be read, with that in the vmlinux."""
    ours = kimage.read_vmlinux(vmlinux).banner.encode()
    places = symbols.addresses(vmlinux, _BANNER)
    if not ours or len(places) != 1:
        return
    expected = _PREFIX + ours
    found = read(qmp, places[0] + moved, len(expected))
    if found and found != expected:
        raise _other(vmlinux, f"it is {found.decode(errors='replace')}")


def _other(vmlinux: Path, why: str) -> MismatchError:
    return MismatchError(
        f"the kernel that runs is not that of {vmlinux}: {why}",
        hint="start the guest with the vmlinux of its kernel, or go on anyway with --force",
    )


def _moved(handler: int, vmlinux: Path, debug: Debug) -> int | None:
    """Return the slide by the first exception handler, early or final; None if it is neither."""
    for name in (debug.first_vector, debug.early_vector):
        for entry in symbols.addresses(vmlinux, name)[:1] if handler else ():
            place, rest = divmod(handler - entry, int(debug.kaslr_step, 16))
            if rest == 0 and 0 <= place < debug.kaslr_places:
                return handler - entry
    return None


def _handler(qmp: Qmp, debug: Debug) -> int:
    """Return the address of the first exception handler; 0 if there is no exception table."""
    found = re.search(debug.vectors, _hmp(qmp, "info registers"))
    entry = read(qmp, int(found[1], 16), debug.vector_bytes) if found else b""
    return int.from_bytes(b"".join(entry[low:high] for low, high in debug.vector_address), "little")


def read(qmp: Qmp, address: int, count: int) -> bytes:
    """Return guest memory at a virtual address, as a CPU that maps it sees it; b"" if none does.

    With page-table isolation, a CPU in user space does not map the kernel's data.
    """
    for cpu in _cpus(qmp):
        said = _hmp(qmp, f"x /{count}xb {address:#x}", cpu)
        data = bytes(int(each, 16) for each in _WORDS.findall(said))
        if len(data) == count:
            return data
    return b""


def registers(qmp: Qmp) -> str:
    """Return the registers of all CPUs, as QEMU's `info registers -a` prints them; "" if it does not."""
    return _hmp(qmp, "info registers -a")


def _cpus(qmp: Qmp) -> Iterator[int]:
    yield 0
    yield from range(1, len(qmp("query-cpus-fast")))


def _hmp(qmp: Qmp, line: str, cpu: int = 0) -> str:
    try:
        return str(qmp("human-monitor-command", **{"command-line": line, "cpu-index": cpu}))
    except QmpError:
        return ""
