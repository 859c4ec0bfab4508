"""Coverage of a guest's kernel: has the plugin in QEMU record which code is executed, and names its lines."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from vmdebug import arch, extras, loaded_modules, run_control, running_kernel
from vmdebug.deadline import Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import StateError, VmdebugError
from vmdebug.spelling import option
from vmdebug.trace.coverage.kernel_code import KernelCode
from vmdebug.trace.coverage.link import CoverageLink
from vmdebug.trace.coverage.mapping import Lines
from vmdebug.trace.coverage.wire import Block, Recorded
from vmdebug.trace.expressions.module_image import PlacedModule
from vmdebug.trace.plugin.collector import Guest
from vmdebug.vm import Vm

COVERAGE_SECONDS = 30.0
"""How long QEMU may take to begin."""

_SOON_SECONDS = 0.3
"""How long to wait until a vCPU of a running guest becomes idle; a guest at its shell needs 10 ms."""

_MODULES_SECONDS = 5.0
"""How long the guest's shell may take to list the modules."""

_KERNEL_HALF = (0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FF00_0000)
"""Where to record: the upper half of the addresses, without the vsyscall page."""


class Coverage:
    """What a guest's kernel executed; a context manager that records it. Made by `DebugSession.coverage`.

    Args:
        machine: The VM.
        gdb: The session's GDB, if one is attached.
        force: Whether to accept symbols of another build.
        source: The directory of the kernel's source; None: where its debugging information says.
        timeout: Seconds for the recording to begin.
    """

    def __init__(
        self,
        machine: Vm,
        *,
        gdb: Gdb | None = None,
        force: bool = False,
        source: Path | None = None,
        timeout: float = COVERAGE_SECONDS,
    ) -> None:
        self._vm = machine
        self._gdb = gdb
        self._force = force
        self._timeout = timeout
        self._source = source
        self._code: KernelCode | None = None
        self._link: CoverageLink | None = None
        self._recorded: Recorded | None = None
        self._slide: int | None = None
        self._modules: list[PlacedModule] = []
        self._blocks: list[Block] = []
        self._files: dict[str, Lines] | None = None
        self._lost = 0

    def __enter__(self) -> Self:
        self.begin(timeout=self._timeout)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, *, keep: bool = False, timeout: float = COVERAGE_SECONDS) -> None:
        """Begin to record.

        Args:
            keep: Whether QEMU goes on recording when this process ends; `resume` takes it up again.
            timeout: Seconds until a CPU of a running guest pauses.

        Raises:
            StateError: QEMU has no plugin, or it records coverage already, or no CPU of the guest pauses.
            UsageError: the kernel has no vmlinux with debugging information.
            MismatchError: the vmlinux is not that of the kernel that runs.
        """
        self._needs_plugin()
        row = arch.by_name(self._vm.state.spec.kernel.arch)
        self._look(_MODULES_SECONDS)
        link = CoverageLink(self._vm.rundir.trace, self._vm.name)
        try:
            self._recorded = link.begin((_KERNEL_HALF,), row.conditional_jumps, keep=keep)
            self._await(link, timeout)
        except BaseException:
            link.close()
            raise
        self._link, self._files, self._blocks = link, None, []

    def resume(self) -> None:
        """Take up a recording that `begin(keep=True)` of another process has begun.

        Raises:
            StateError: QEMU has no plugin, or records no coverage.
        """
        self._needs_plugin()
        link = CoverageLink(self._vm.rundir.trace, self._vm.name)
        with contextlib.ExitStack() as undo:
            undo.callback(link.close)
            recorded = link.recorded()
            if recorded is None:
                raise StateError(
                    f"no coverage of {self._vm.name} is being recorded",
                    hint=f"begin with: vmdebug cov start {self._vm.name}",
                )
            undo.pop_all()
        self._link, self._recorded = link, recorded

    def _needs_plugin(self) -> None:
        """Raise if QEMU has not loaded the plugin.

        Raises:
            StateError: it has not.
        """
        if not self._vm.rundir.trace.exists():
            self._vm.check_alive("coverage")
            why = self._vm.state.untraceable or "it was started without"
            raise StateError(
                f"coverage needs vmdebug's plugin in QEMU, and {self._vm.name} has none: {why}",
                hint="start the VM anew with"
                f" {option('accel', 'tcg')} {option('trace_ready', 'yes')} (QEMU 7.2 or newer)",
            )

    def _await(self, link: CoverageLink, timeout: float) -> None:
        """Wait until the plugin records; that of a stopped guest begins when the guest is resumed."""
        guest = self._guest()
        if not guest.running or link.wait_ready(Deadline.after(_SOON_SECONDS)):
            return
        guest.nudge()
        if not link.wait_ready(Deadline.after(timeout)):
            raise StateError(
                f"no CPU of {self._vm.name} pauses, so QEMU does not begin to record coverage",
                hint="stop and continue the guest in the GDB that is attached to it",
            )

    def _guest(self) -> Guest:
        connected = self._gdb is not None and run_control.is_connected(self._gdb)
        return run_control.guest_of(self._vm, self._gdb if connected else None, self._timeout)

    def _look(self, timeout: float) -> None:
        """Note where the kernel and its modules are now, as far as that is known.

        Args:
            timeout: Seconds in which the guest's shell must answer.

        Raises:
            MismatchError: the vmlinux is not that of the kernel that runs.
        """
        if self._slide is None:
            with contextlib.suppress(StateError):  # KASLR has not chosen yet
                self._slide = running_kernel.find(self._vm, self._gdb, force=self._force).slide
        if self._running():
            found = loaded_modules.loaded(self._vm, timeout=timeout)
            self._modules += [each for each in found if each not in self._modules]

    def _running(self) -> bool:
        with contextlib.suppress(VmdebugError):
            return self._guest().running
        return False

    def find_modules(self, *, timeout: float = _MODULES_SECONDS) -> None:
        """Note which modules are loaded now: the code of one that is unloaded before the end has no name.

        Args:
            timeout: Seconds in which the guest's shell must answer.
        """
        self._look(timeout)

    def clear(self) -> None:
        """Forget what was executed until now.

        Raises:
            StateError: nothing is being recorded.
        """
        self._recording().clear()

    def end(self, *, timeout: float = _MODULES_SECONDS) -> None:
        """Stop recording; nothing happens if it has ended already.

        Args:
            timeout: Seconds in which the guest's shell must say where the modules are.
        """
        if self._link is None or self._recorded is None:
            return
        link, recorded, self._link, self._recorded = self._link, self._recorded, None, None
        try:
            self._blocks, self._lost = list(recorded.blocks()), recorded.lost
            link.end()
            with contextlib.suppress(VmdebugError):  # QEMU may have ended
                self._look(timeout)
        finally:
            link.close()
            recorded.close()

    def detach(self) -> None:
        """Leave QEMU recording; see `begin(keep=True)`."""
        if self._link is not None and self._recorded is not None:
            self._link.close()
            self._recorded.close()
        self._link = self._recorded = None

    def _recording(self) -> Recorded:
        if self._recorded is None:
            raise StateError(
                "no coverage is being recorded", hint="use it as a context manager: with … as cover:"
            )
        return self._recorded

    @property
    def code(self) -> KernelCode:
        """The kernel's code and source."""
        if self._code is None:
            self._code = KernelCode(self._vm.state.spec.kernel, self._source)
        return self._code

    @property
    def files(self) -> Mapping[str, Lines]:
        """The lines and branches that were executed, by the paths of the source files on this machine.

        During the recording: until now.

        Raises:
            StateError: it is not known where KASLR has put the kernel.
            VmdebugError: see `KernelCode`.
        """
        if self._recorded is not None:
            return self._named(list(self._recorded.blocks()))
        if self._files is None:
            self._files = self._named(self._blocks)
        return self._files

    def _named(self, blocks: Sequence[Block]) -> dict[str, Lines]:
        slide = self._slide
        if slide is None and "nokaslr" in self._vm.state.spec.parameters:
            slide = 0
        if slide is None:
            raise StateError(
                "it is not known where KASLR has put the kernel, so its lines have no names",
                hint=f"end the recording while the guest lives, or start it without {option('kaslr', True)}",
            )
        return self.code.executed(blocks, slide, self._modules)

    def lines(self, file: str) -> frozenset[int]:
        """Return the lines of a file that were executed.

        Args:
            file: Its path in the kernel's tree, "fs/proc/version.c", or on this machine.

        Raises:
            UsageError: the kernel has no code from there.
            VmdebugError: see `files`.
        """
        path = str(self.code.root / file)
        found = self.files.get(path)
        if found is None:
            self.code.known({}).selected([file])  # raises if the kernel has no code from there
        return Lines().lines if found is None else found.lines

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing, for the user."""
        count = self._lost if self._recorded is None else self._recorded.lost
        lost = (f"{count} blocks of code were not recorded: they are too many",) if count else ()
        return (*lost, *(self._code.notes if self._code is not None else ()))

    def save(
        self,
        path: Path,
        *,
        context: str = "",
        append: bool = False,
        wanted: Sequence[str] = (),
    ) -> None:
        """Write a data file of coverage.py, and FILE-lines beside it.

        Args:
            path: The data file.
            context: The name for what was executed, such as a test's.
            append: Whether to keep what the file has.
            wanted: Keep only what was executed of these files and directories of the kernel's tree, and of
                these modules.

        Raises:
            HostError: coverage.py is not installed, or the file cannot be written.
            UsageError: there is no such file or module; or the data file is of another kind.
            VmdebugError: see `files`.
        """
        extras.COV.need("a data file of coverage")
        from vmdebug.trace.coverage import library  # noqa: PLC0415 - coverage.py is optional

        files = self.files
        known = self.code.known(files)
        names = known.selected(wanted) if wanted else known.files
        chosen = {each: files[each] for each in names if each in files}
        library.save(path, known, {context: chosen}, append=append)
