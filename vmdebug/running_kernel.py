"""The kernel that runs in a guest: its vmlinux, where KASLR has put it, and what is compiled for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vmdebug import arch, replaying
from vmdebug.arch import Arch
from vmdebug.debugger.gdb import Gdb
from vmdebug.trace.expressions.compiled import Compiled, compiled
from vmdebug.trace.expressions.module_image import PlacedModule
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.probe import Wanted
from vmdebug.trace.selecting import collected
from vmdebug.vm import Vm, kernel_address


class RunningKernel(NamedTuple):
    """The kernel that runs, as traces are compiled for it."""

    vmlinux: Path
    row: Arch
    slide: int
    modules: tuple[PlacedModule, ...]

    def compiled(self, wanted: Wanted) -> Compiled:
        """Compile a trace."""
        return compiled(collected(wanted), self.vmlinux, self.row, self.slide, self.modules)


def find(
    machine: Vm, gdb: Gdb | None, modules: tuple[PlacedModule, ...] = (), *, force: bool
) -> RunningKernel:
    """Return the kernel of a VM.

    Args:
        machine: The VM.
        gdb: The GDB that is attached, or None.
        modules: The modules whose functions are wanted, too.
        force: Whether to accept a vmlinux of another build.

    Raises:
        NotCompiledError: there is no vmlinux.
        MismatchError: the vmlinux is not that of the kernel that runs.
    """
    spec = machine.state.spec
    vmlinux = spec.kernel.vmlinux
    if vmlinux is None:
        raise NotCompiledError(f"the guest {spec.guest} has no vmlinux, where traces find functions")
    row = arch.by_name(spec.kernel.arch)
    verdict = gdb.identity if gdb is not None else None
    if verdict is not None and verdict.state in ("proven", "placed", "other"):
        slide = verdict.slide
    elif (replay := replaying.of(machine)) is not None and replay.slide is not None:
        slide = replay.slide
    else:
        kaslr = "nokaslr" not in spec.parameters
        slide = kernel_address.slide(machine.qmp, vmlinux, row, kaslr=kaslr, force=force)
    return RunningKernel(vmlinux, row, slide, modules)
