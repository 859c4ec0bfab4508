"""Collects a profile with the plugin in QEMU: a sample each so many instructions of a CPU."""

from __future__ import annotations

import bisect
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from vmdebug.arch import Arch
from vmdebug.errors import GuestDiedError, StateError, VmdebugError
from vmdebug.kimage import symbols
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.module_image import PlacedModule
from vmdebug.trace.plugin import wire
from vmdebug.trace.plugin.collector import Guest, await_recording
from vmdebug.trace.plugin.link import Link
from vmdebug.trace.plugin.wire import Request
from vmdebug.trace.profile import samples
from vmdebug.trace.profile.raw import Collected, Mapped, RawSample
from vmdebug.trace.profile.samples import Taken
from vmdebug.trace.unwinding.backtrace import Backtraces

PERIOD = 1_000_003
"""Instructions of a CPU between two samples; a prime, so that they do not keep step with loops."""

LEAST_PERIOD, MOST_PERIOD = 10_000, 4_000_000_000

_IDLE = "cpu_startup_entry"
"""The function in which the idle task of a CPU stays; what boots is the idle task, too, until it calls it."""

_FOREVER = 1 << 63
_TICK_NS = 10_000_000
"""How old the guest's time of a sample may be: a tick."""


class Processes(Protocol):
    """Tells about the processes of the guest; see `GuestSampler` with `NO_SAMPLES`."""

    @property
    def ours(self) -> tuple[int, ...]:
        """The processes of vmdebug."""

    def start(self) -> None:
        """Begin to record them."""

    def stop(self) -> Collected:
        """End, and return what was recorded, without samples."""

    def close(self) -> None:
        """Release what it holds in the guest."""


class PluginSampler:
    """Samples what the CPUs of a guest execute.

    Args:
        socket: The plugin's socket.
        vm: The VM's name, for errors.
        guest: Runs and stops the guest.
        vmlinux: The kernel, with debugging information.
        row: Its architecture.
        slide: How far KASLR has moved it.
        request: See `samples.request`.
        modules: Returns the modules that are loaded.
        processes: Makes what tells about processes; it raises a VmdebugError if the guest cannot.
        idle: Whether to keep the samples of idle CPUs.
        timeout: Seconds for the profile to begin, and to end.
    """

    name = "the plugin"

    def __init__(
        self,
        socket: Path,
        vm: str,
        guest: Guest,
        *,
        vmlinux: Path,
        row: Arch,
        slide: int,
        request: Request,
        modules: Callable[[], Sequence[PlacedModule]],
        processes: Callable[[], Processes],
        idle: bool,
        timeout: float,
    ) -> None:
        self._path = socket
        self._vm = vm
        self._guest = guest
        self._vmlinux = vmlinux
        self._row = row
        self._slide = slide
        self._modules = modules
        self._make = processes
        self._request = request
        self._period = request.period
        self._idle = idle
        self._timeout = timeout
        self._processes: Processes | None = None
        self._link: Link | None = None
        self._was_running = True
        self._notes: list[str] = []

    def start(self) -> None:
        """Begin; a stopped guest runs from now on.

        Raises:
            StateError: QEMU's plugin cannot count instructions, or no CPU of the guest pauses.
            VmError: the plugin refuses it: another profile is being taken.
        """
        self._was_running = self._guest.running
        link = Link(self._path, self._vm)
        try:
            self._check(link)
            self._find_processes()
            self._began = time.monotonic()
            link.begin(self._request)
            await_recording(link, self._guest, self._vm, running=self._was_running, timeout=self._timeout)
        except BaseException:
            link.close()
            self.close()
            raise
        self._link = link

    def _check(self, link: Link) -> None:
        if not link.hello.features & wire.SAMPLES:
            raise StateError(
                f"the plugins of {self._vm}'s QEMU cannot count instructions",
                hint="start the VM with QEMU 9.2 or newer, or let the guest's kernel sample",
            )

    def _find_processes(self) -> None:
        """Have the guest record its processes, if it can."""
        if not self._was_running:
            self._notes.append("user programs have no names: the guest was stopped when the profile began")
            return
        processes: Processes | None = None
        try:
            processes = self._make()
            processes.start()
        except VmdebugError as error:
            self._notes.append(f"user programs have no names: {error.message}")
            if processes is not None:
                processes.close()
        else:
            self._processes = processes

    def stop(self) -> Collected:
        """End the profile, and return it; a guest that was stopped is stopped again.

        Raises:
            VmdebugError: QEMU does not answer.
        """
        if self._link is None:
            raise StateError("the profile is not running")
        link, self._link = self._link, None
        try:
            with contextlib.suppress(GuestDiedError):
                link.finish(self._timeout)
            seconds = time.monotonic() - self._began
            chunks, results = link.take(), link.results
        finally:
            link.close()
        if not self._was_running and self._guest.running:
            self._guest.pause()
        about = self._about()
        modules = self._modules() if self._was_running else ()
        return self._collected(self._samples(chunks, modules), results, about, seconds)

    def _about(self) -> Collected | None:
        """Return what the guest tells about its processes and modules."""
        if self._processes is not None:
            try:
                return self._processes.stop()
            except VmdebugError as error:
                self._notes.append(f"user programs have no names: {error.message}")
        return None

    def _samples(self, chunks: Sequence[bytes], modules: Sequence[PlacedModule]) -> list[Taken]:
        with Kernel(self._vmlinux, modules, self._slide) as kernel:
            unwind = Backtraces(kernel, self._row, self._slide).frames
            found = list(samples.taken(chunks, unwind, self._period))
        return sorted(found, key=lambda each: each.sample.time)

    def _collected(
        self, found: list[Taken], results: wire.Results, about: Collected | None, seconds: float
    ) -> Collected:
        ours = self._processes.ours if self._processes is not None else ()
        kept = [each for each in found if each.sample.pid not in ours and not self._is_idle(each.sample)]
        left_out = sum(each.sample.pid in ours for each in found)
        notes = [*self._notes, *(about.notes if about is not None else ())]
        if results.unevaluated:
            notes.append(
                f"{results.unevaluated} samples were lost: the plugin could not read the guest's memory"
            )
        if left_out:
            notes.append(f"{left_out} samples of vmdebug's own programs in the guest are left out")
        ours_alone = Collected(
            samples=[each.sample for each in kept],
            unit="instructions",
            period=self._period,
            seconds=seconds,
            kallsyms="",
            mapping=_unmapped,
            read_file=lambda _pid, _path: None,
            notes=tuple(notes),
        )
        if about is None:
            return ours_alone
        return msgspec.structs.replace(
            ours_alone, kallsyms=about.kallsyms, mapping=_Timed(found, about), read_file=about.read_file
        )

    def _is_idle(self, sample: RawSample) -> bool:
        if self._idle or sample.tid:
            return False
        return any(
            low <= each - 1 - self._slide < low + size
            for low, size in self._idle_code
            for each in sample.kernel
        )

    @functools.cached_property
    def _idle_code(self) -> tuple[tuple[int, int], ...]:
        """The linked addresses and the sizes of `_IDLE`."""
        return symbols.sized(self._vmlinux, _IDLE)

    def close(self) -> None:
        """End the profile, and release what it holds in the guest."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._processes is not None:
            self._processes.close()
            self._processes = None


def _unmapped(pid: int, address: int, time: int) -> Mapped | None:  # noqa: ARG001 - see FindMapping
    """Find no mapping: nothing is known of processes."""
    return None


class _Timed:
    """Finds mappings by the host's time, when the guest has recorded them by its own.

    Args:
        found: The samples, in order of the host's time.
        about: What the guest tells.
    """

    def __init__(self, found: Sequence[Taken], about: Collected) -> None:
        self._about = about
        self._host: list[int] = []
        self._guest: list[int] = []
        latest = 0
        for each in found:
            if each.clock > latest:
                latest = each.clock
                self._host.append(each.sample.time)
                self._guest.append(latest)

    def __call__(self, pid: int, address: int, time: int) -> Mapped | None:
        """Return the mapping of an address in a process at a time of the host; None if it is not known."""
        number = bisect.bisect_right(self._host, time)
        then = self._guest[number - 1] + _TICK_NS if number else _FOREVER
        return self._about.mapping(pid, address, then)
