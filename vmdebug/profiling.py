"""Profiles of a session's guest: the sampler, and the context manager that samples."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self, TypedDict

from vmdebug import guest_programs, guest_tracing, loaded_modules, run_control, running_kernel
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import StateError, UsageError
from vmdebug.running_kernel import RunningKernel
from vmdebug.spelling import option
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.profile import samples
from vmdebug.trace.profile.by_guest import NO_SAMPLES, GuestSampler
from vmdebug.trace.profile.by_plugin import LEAST_PERIOD, MOST_PERIOD, PERIOD, PluginSampler
from vmdebug.trace.profile.callers import Callers
from vmdebug.trace.profile.naming import Namer
from vmdebug.trace.profile.profile import Profile
from vmdebug.trace.profile.program import SAMPLER
from vmdebug.trace.profile.raw import Collected
from vmdebug.trace.unwinding.places import Places
from vmdebug.vm import Vm, tracing

RATE = 997
"""Samples of each CPU a second; a prime, so that they do not keep step with the guest's timers."""

MOST = 50_000
"""The most samples a second."""


By = Literal["auto", "plugin", "guest"]
"""Who the caller wants to sample."""

BY: tuple[By, ...] = ("auto", "plugin", "guest")


class ProfileOptions(TypedDict, total=False):
    """The keyword arguments of `DebugSession.profile`; all have a default.

    Args:
        by: Who samples: "plugin", "guest", or "auto": the plugin in QEMU where it can, if neither `rate` nor
            `event` is given, otherwise the guest's kernel.
        rate: Samples of each CPU a second, by the guest's kernel; None: 997.
        event: What the guest's kernel samples by: "cycles", "cpu-clock", or "auto", which is cycles where the
            CPU counts them.
        period: Instructions of a CPU between two samples, by the plugin.
        idle: Whether to sample idle CPUs, too.
        inlined: Whether to name inlined functions of the kernel, which needs DWARF and takes longer.
    """

    by: By
    rate: int | None
    event: str
    period: int
    idle: bool
    inlined: bool


class Sampler(Protocol):
    """Who samples."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> Collected:
        """End the profile, and return it."""

    def close(self) -> None:
        """Release what it holds in the guest."""


class Profiling:
    """A profile that is taken; a context manager that samples the guest in its block.

    Args:
        sampler: Who samples.
        named: Makes a profile of what it has collected.
    """

    def __init__(self, sampler: Sampler, *, named: Callable[[Collected, str], Profile]) -> None:
        self.collector = sampler.name
        self._sampler = sampler
        self._named = named
        self._profile: Profile | None = None

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._profile = self._named(self._sampler.stop(), self.collector)
        finally:
            self._sampler.close()

    @property
    def profile(self) -> Profile:
        """The profile, after the block.

        Raises:
            StateError: the block has not ended.
        """
        if self._profile is None:
            raise StateError("the profile is not complete", hint="use it after the `with` block")
        return self._profile


class Asked(NamedTuple):
    """What a profile needs; see `prepare`."""

    machine: Vm
    gdb: Gdb | None
    force: bool
    timeout: float
    rate: int | None
    event: str
    period: int
    idle: bool
    inlined: bool


def prepare(
    machine: Vm,
    *,
    attached: Gdb | None,
    force: bool,
    timeout: float,
    by: By = "auto",
    rate: int | None = None,
    event: str = "auto",
    period: int = PERIOD,
    idle: bool = False,
    inlined: bool = False,
) -> Profiling:
    """Return a profile that has not begun.

    Args:
        machine: The VM.
        attached: The GDB of the session, if it has one.
        force: Whether to accept symbols of another build.
        timeout: Seconds for the profile to begin, and to end.
        by: See `ProfileOptions`.
        rate: See there.
        event: See there.
        period: See there.
        idle: See there.
        inlined: See there.

    Raises:
        UsageError: an argument has the wrong form.
        NotCompiledError: with `by="plugin"`: there is no vmlinux with debugging information.
        StateError: with `by="plugin"`: QEMU has not loaded the plugin. Otherwise: the guest does not run, or
            has no agent.
        MismatchError: the symbols are not those of the kernel that runs.
    """
    check(by, rate, event, period)
    gdb = attached if attached is not None and run_control.is_connected(attached) else None
    asked = Asked(machine, gdb, force, timeout, rate, event, period, idle, inlined)
    if by == "plugin":
        return _by_plugin(asked)
    if by == "auto" and rate is None and event == "auto":
        with contextlib.suppress(StateError, NotCompiledError):
            return _by_plugin(asked)
    return _by_guest(asked)


def _by_plugin(asked: Asked) -> Profiling:
    machine = asked.machine
    tracing.check_loaded(machine.rundir, machine.state.untraceable, "the guest", reads=True)
    kernel = running_kernel.find(machine, asked.gdb, force=asked.force)

    with Kernel(kernel.vmlinux) as dwarf:
        request = samples.request(dwarf, kernel.row, kernel.slide, asked.period)

    def processes() -> GuestSampler:
        return _sampler(asked, event=NO_SAMPLES, rate=1, all_symbols=False)

    sampler = PluginSampler(
        machine.rundir.trace,
        machine.name,
        run_control.guest_of(machine, asked.gdb, asked.timeout),
        vmlinux=kernel.vmlinux,
        row=kernel.row,
        slide=kernel.slide,
        request=request,
        modules=functools.partial(loaded_modules.loaded, machine, timeout=asked.timeout),
        processes=processes,
        idle=asked.idle,
        timeout=asked.timeout,
    )
    return Profiling(sampler, named=functools.partial(_named, machine, kernel, asked.inlined))


def _by_guest(asked: Asked) -> Profiling:
    machine = asked.machine
    guest = run_control.guest_of(machine, asked.gdb, asked.timeout)
    guest_tracing.check(machine, running=guest.running)
    try:
        kernel = running_kernel.find(machine, asked.gdb, force=asked.force)
    except NotCompiledError:
        kernel = None
    sampler = _sampler(asked, event=asked.event, rate=asked.rate or RATE, all_symbols=kernel is None)
    return Profiling(sampler, named=functools.partial(_named, machine, kernel, asked.inlined))


def _sampler(asked: Asked, *, event: str, rate: int, all_symbols: bool) -> GuestSampler:
    machine = asked.machine
    shell = guest_programs.shell_for(machine, "a profile", timeout=asked.timeout)
    return GuestSampler(
        functools.partial(guest_programs.begin, machine, shell, SAMPLER, timeout=asked.timeout),
        machine.name,
        event=event,
        rate=rate,
        idle=asked.idle,
        all_symbols=all_symbols,
        timeout=asked.timeout,
    )


def check(by: str, rate: int | None, event: str, period: int) -> None:
    """Check who samples, and how often.

    Raises:
        UsageError: there is no such collector, a number is out of range, or an option is not for it.
    """
    if by not in BY:
        raise UsageError(f"there is no collector {by!r} of profiles", hint=f"they are {', '.join(BY)}")
    if rate is not None and (not isinstance(rate, int) or not 0 < rate <= MOST):
        raise UsageError(
            f"rate={rate!r} is not a number from 1 to {MOST}", hint=f"leave it out: it is {RATE}"
        )
    if not isinstance(period, int) or not LEAST_PERIOD <= period <= MOST_PERIOD:
        raise UsageError(
            f"period={period!r} is not a number from {LEAST_PERIOD} to {MOST_PERIOD}",
            hint=f"leave it out: it is {PERIOD}",
        )
    guests = rate is not None or event != "auto"
    if by == "plugin" and guests:
        raise UsageError(
            "the plugin counts instructions: rate and event are for the guest's kernel",
            hint=f"give {option('period', PERIOD)} instead",
        )
    if period != PERIOD and (by == "guest" or guests):
        raise UsageError(
            "period is for the plugin, which counts instructions", hint="give rate, for the guest's kernel"
        )


def _named(
    machine: Vm, kernel: RunningKernel | None, inlined: bool, collected: Collected, collector: str
) -> Profile:
    """Return what was collected as a profile, with names."""
    state = machine.state
    vmlinux, slide = (kernel.vmlinux, kernel.slide) if kernel is not None else (None, 0)
    callers = Callers(kernel.vmlinux, slide, kernel.row) if kernel is not None else None

    def profile(expand: Callable[[int, int], list[str]] | None) -> Profile:
        namer = Namer(vmlinux, slide, collected, expand, callers)
        return namer.profile(collector=collector, vm=machine.name, kernel=state.spec.kernel.release)

    if not inlined or vmlinux is None:
        return profile(None)
    with Kernel(vmlinux) as dwarf:
        places = Places(dwarf, slide)
        return profile(lambda address, before: [each.function for each in places.calls(address, before)])
