"""Writes a guest's memory to a file that crash(8), drgn and GDB can read.

QEMU writes the file, see `dump-guest-memory` in the QMP reference; then what it lacks is added, see
`dump_headers`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from pathlib import Path

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, QmpError, UsageError, VmdebugError, VmError
from vmdebug.guest import Kernel
from vmdebug.paths import file_system
from vmdebug.progress import Report, Step, silent
from vmdebug.vm import dump_headers, vmcoreinfo
from vmdebug.vm.machine import Vm

DUMP_SECONDS = 3600.0
"""How long a dump may take: 0.7 s for 256 MB on a quiet machine, longer for more memory and a slow disk."""

ELF = "elf"
FORMATS = (ELF, "kdump-zlib", "kdump-lzo", "kdump-snappy")
"""The formats, as `DumpGuestMemoryFormat` of QMP names them. A compressed dump is about a tenth as large."""

DEFAULT = "kdump-zlib"

_RAW = {name: name.replace("kdump-", "kdump-raw-") for name in FORMATS}
"""The same formats without makedumpfile's flattening, which only pipes need; since QEMU 8.2."""

_UNIT = 1 << 20


class Dump(msgspec.Struct, frozen=True):
    """A dump that was written.

    Args:
        path: The file.
        format: One of `FORMATS`.
        size: Its size in bytes.
        slide: By how many bytes KASLR moved the kernel, if the dump says so.
    """

    path: Path
    format: str
    size: int
    slide: int | None = None


def write(
    vm: Vm,
    path: Path,
    *,
    format_: str = DEFAULT,
    report: Report = silent,
    timeout: float = DUMP_SECONDS,
) -> Dump:
    """Write a dump of a VM's memory. QEMU stops the guest meanwhile.

    Args:
        vm: The VM; it may run, be stopped or have panicked.
        path: The file; an existing one is replaced when the dump is complete.
        format_: One of `FORMATS`.
        report: Called with the progress.
        timeout: Seconds.

    Raises:
        UsageError: QEMU does not know the format.
        HostError: the file cannot be written, or the disk is full.
        VmError: QEMU could not write it.
        GuestDiedError: QEMU has ended.
        DeadlineError: it took too long; no file is left.
    """
    deadline = Deadline.after(timeout)
    wanted = _known_format(vm, format_, deadline)
    target = path.absolute()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    plain = partial.with_name(f"{partial.name}.raw")
    try:
        partial.touch(mode=0o600)
        _by_qemu(vm, partial, wanted, report, deadline)
        made = partial
        if dump_headers.is_flattened(partial):
            dump_headers.unflatten(partial, plain)
            made = plain
        slide = dump_headers.complete(made, vm.state.spec.kernel, lambda: _vmcoreinfo(vm, deadline))
        made.replace(target)
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}; {file_system(target.parent)}",
            hint="write it to a directory with room for the guest's memory",
        ) from error
    finally:
        for each in (partial, plain):
            each.unlink(missing_ok=True)
    return Dump(path, format_, target.stat().st_size, slide)


def _known_format(vm: Vm, format_: str, deadline: Deadline) -> str:
    """Return QEMU's name of a format."""
    seconds = deadline.left("QEMU to list the formats of dumps")
    known = vm.qmp("query-dump-guest-memory-capability", timeout=seconds)["formats"]
    for name in (_RAW.get(format_, format_), format_):
        if format_ in FORMATS and name in known:
            return name
    ours = [each for each in FORMATS if each in known]
    raise UsageError(f"there is no format {format_!r} in this QEMU", hint=f"it has: {', '.join(ours)}")


def _by_qemu(vm: Vm, path: Path, format_: str, report: Report, deadline: Deadline) -> None:
    """Have QEMU write the file, and wait until it is complete; stop QEMU's thread on an error."""
    what = "writing the guest's memory"
    seconds = deadline.left(what)
    arguments = {"paging": False, "protocol": f"file:{path}", "format": format_, "detach": True}
    try:
        vm.qmp("dump-guest-memory", timeout=seconds, **arguments)
    except QmpError as error:
        raise VmError(f"QEMU cannot write the dump: {error.message}", hint=error.hint) from error
    for pause in deadline.pauses(what):
        state = vm.qmp("query-dump", timeout=deadline.left(what))
        report(Step(what, done=state["completed"] // _UNIT, total=state["total"] // _UNIT, note="MiB"))
        if state["status"] == "completed":
            return
        if state["status"] == "failed":
            raise _failed(path)
        time.sleep(pause)


def _failed(path: Path) -> VmdebugError:
    """Return the error for a dump that QEMU could not write; QMP has no reason."""
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < _UNIT:
        return HostError(
            f"the dump does not fit: {file_system(path.parent)}",
            hint="write it to a directory with room for the guest's memory, or in a compressed format",
        )
    return VmError("QEMU could not write the dump", hint=f"is {path.parent} writable for it?")


def _vmcoreinfo(vm: Vm, deadline: Deadline) -> bytes:
    """Return what the kernel tells readers of dumps, from its memory; b"" if that is unknown."""
    if vm.state.spec.kernel.vmlinux is None:
        return b""
    kaslr = "nokaslr" not in vm.state.spec.parameters
    with contextlib.suppress(VmdebugError), vm.connected(timeout=deadline.left("QEMU to answer")) as qmp:
        return vmcoreinfo.read(
            lambda command, **arguments: qmp.execute(command, arguments or None),
            vm.state.spec.kernel,
            kaslr=kaslr,
        )
    return b""


def readers(dump: Dump, kernel: Kernel) -> list[str]:
    """Return command lines that open a dump: of vmdebug, drgn and crash."""
    path, vmlinux = shlex.quote(str(dump.path)), shlex.quote(str(kernel.vmlinux or "VMLINUX"))
    moved = f" --kaslr {dump.slide:#x}" if dump.slide else ""
    return [
        f"vmdebug report {path} --vmlinux {vmlinux}",
        f"drgn -c {path} -s {vmlinux}",
        f"crash{moved} {vmlinux} {path}",
    ]
