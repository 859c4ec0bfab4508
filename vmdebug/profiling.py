"""Profiles of a session's guest: the sampler, and the context manager that samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypedDict

from vmdebug import guest_programs, guest_tracing, run_control, running_kernel
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import StateError, UsageError
from vmdebug.running_kernel import RunningKernel
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.profile.by_guest import GuestSampler
from vmdebug.trace.profile.naming import Namer
from vmdebug.trace.profile.profile import Profile
from vmdebug.trace.profile.program import SAMPLER
from vmdebug.trace.profile.raw import Collected
from vmdebug.trace.unwinding.places import Places
from vmdebug.vm import Vm

RATE = 997
"""Samples of each CPU a second; a prime, so that they do not keep step with the guest's timers."""

MOST = 50_000
"""The most samples a second."""


class ProfileOptions(TypedDict, total=False):
    """The keyword arguments of `DebugSession.profile`; all have a default.

    Args:
        rate: Samples of each CPU a second.
        event: What the guest's kernel samples by: "cycles", "cpu-clock", or "auto", which is cycles where the
            CPU counts them.
        idle: Whether to sample idle CPUs, too.
        inlined: Whether to name inlined functions of the kernel, which needs DWARF and takes longer.
    """

    rate: int
    event: str
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


def prepare(
    machine: Vm,
    *,
    attached: Gdb | None,
    force: bool,
    timeout: float,
    rate: int = RATE,
    event: str = "auto",
    idle: bool = False,
    inlined: bool = False,
) -> Profiling:
    """Return a profile that has not begun.

    Args:
        machine: The VM.
        attached: The GDB of the session, if it has one.
        force: Whether to accept symbols of another build.
        timeout: Seconds for the profile to begin, and to end.
        rate: See `ProfileOptions`.
        event: See there.
        idle: See there.
        inlined: See there.

    Raises:
        UsageError: an argument has the wrong form.
        StateError: the guest does not run, or has no agent.
        MismatchError: the symbols are not those of the kernel that runs.
    """
    check(rate)
    gdb = attached if attached is not None and run_control.is_connected(attached) else None
    guest = run_control.guest_of(machine, gdb, timeout)
    guest_tracing.check(machine, running=guest.running)
    try:
        kernel = running_kernel.find(machine, gdb, force=force)
    except NotCompiledError:
        kernel = None
    shell = guest_programs.shell_for(machine, "a profile", timeout=timeout)
    sampler = GuestSampler(
        functools.partial(guest_programs.begin, machine, shell, SAMPLER, timeout=timeout),
        machine.name,
        event=event,
        rate=rate,
        idle=idle,
        all_symbols=kernel is None,
        timeout=timeout,
    )
    return Profiling(sampler, named=functools.partial(_named, machine, kernel, inlined))


def check(rate: int) -> None:
    """Check how often samples are taken.

    Raises:
        UsageError: the number is out of range.
    """
    if not isinstance(rate, int) or not 0 < rate <= MOST:
        raise UsageError(
            f"rate={rate!r} is not a number from 1 to {MOST}", hint=f"leave it out: it is {RATE}"
        )


def _named(
    machine: Vm, kernel: RunningKernel | None, inlined: bool, collected: Collected, collector: str
) -> Profile:
    """Return what was collected as a profile, with names."""
    state = machine.state
    vmlinux, slide = (kernel.vmlinux, kernel.slide) if kernel is not None else (None, 0)

    def profile(expand: Callable[[int, int], list[str]] | None) -> Profile:
        namer = Namer(vmlinux, slide, collected, expand)
        return namer.profile(collector=collector, vm=machine.name, kernel=state.spec.kernel.release)

    if not inlined or vmlinux is None:
        return profile(None)
    with Kernel(vmlinux) as dwarf:
        places = Places(dwarf, slide)
        return profile(lambda address, before: [each.function for each in places.calls(address, before)])
