"""Traces by the guest's own kernel: makes the collector, whose reader runs in the guest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from vmdebug import arch, guest_programs
from vmdebug.arch import Arch
from vmdebug.errors import StateError
from vmdebug.kimage import symbols
from vmdebug.trace.expressions.compiled import Compiled
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.guest import events
from vmdebug.trace.guest.collector import GuestCollector
from vmdebug.trace.guest.event_group import FRAGMENT
from vmdebug.trace.guest.events import Event
from vmdebug.trace.guest.program import READER
from vmdebug.trace.guest.stacks import Stacks
from vmdebug.trace.probe import Wanted
from vmdebug.vm import Vm


def check(machine: Vm, *, running: bool) -> None:
    """Check that the guest could collect.

    Raises:
        StateError: it does not run.
    """
    if not running:
        raise StateError(
            f"the guest's kernel collects only while it runs, and {machine.name} is stopped",
            hint="set it running, or let QEMU's plugin or GDB collect it",
        )


def needed(wanted: Wanted) -> bool:
    """Return whether only the guest's kernel can collect a trace: it has tracepoints."""
    return bool(wanted.activity) or any(events.is_tracepoint(probe.where) for probe in wanted.probes)


def collector(
    compile_: Callable[[Wanted], Compiled],
    wanted: Wanted,
    machine: Vm,
    *,
    running: Callable[[], bool],
    timeout: float,
) -> GuestCollector:
    """Return the collector that uses the guest's own tracefs.

    Args:
        compile_: Compiles a trace for the kernel that runs.
        wanted: The trace.
        machine: The VM.
        running: Returns whether the guest runs.
        timeout: Seconds for the trace to begin, and to end.

    Raises:
        NotCompiledError: tracefs cannot fetch what an expression needs.
        StateError: the guest has no agent.
        VmdebugError: the guest has no shell that answers.
    """
    kernel = machine.state.spec.kernel
    if kernel.vmlinux is None:
        raise NotCompiledError(
            f"the guest {machine.state.spec.guest} has no vmlinux, where its functions are"
        )
    row = arch.by_name(kernel.arch)
    (text, *_) = symbols.addresses(kernel.vmlinux, events.TEXT) or (0,)
    indexes = [n for n, probe in enumerate(wanted.probes) if not events.is_tracepoint(probe.where)]
    # The kernel unwinds its stacks itself.
    functions = msgspec.structs.replace(
        wanted, probes=tuple(wanted.probes[each] for each in indexes), backtrace=False
    )
    trace = compile_(functions)
    # fprobes are not counted by the kernel, and its stacks begin in ftrace.
    fast = not wanted.backtrace and not wanted.count_only
    made = events.kprobes(trace, functions, row, text)
    found = [
        msgspec.structs.replace(each, probe=indexes[each.probe])
        for each in (_with_fprobes(made, functions, row, kernel.vmlinux, trace.slide) if fast else made)
    ]
    found += [
        events.tracepoint(number, probe.where, wanted.when)
        for number, probe in enumerate(wanted.probes)
        if number not in indexes
    ]
    _check_kernel(kernel.vmlinux, trace, functions)
    shell = guest_programs.shell_for(machine, "a trace", timeout=timeout)
    return GuestCollector(
        functools.partial(guest_programs.begin, machine, shell, READER, timeout=timeout),
        machine.name,
        found,
        notes=trace.notes,
        stacks=Stacks(kernel.vmlinux, trace.slide),
        running=running,
        timeout=timeout,
    )


def _with_fprobes(
    made: Sequence[Event], functions: Wanted, row: Arch, vmlinux: Path, slide: int
) -> Iterator[Event]:
    """Yield the events of functions, those at the start of one as fprobe events, too."""
    for event in made:
        name = functions.probes[event.probe].where
        begins = name.isidentifier() and symbols.addresses(vmlinux, name) == (event.address - slide,)
        yield events.as_fprobe(event, name, row) if begins else event


_NO_PROBES = ("__noinstr_text", "__kprobes_text", "__entry_text")
"""The parts of the kernel's code that have no kprobes; see `arch_populate_kprobe_blacklist`."""


def _check_kernel(vmlinux: Path, trace: Compiled, functions: Wanted) -> None:
    """Check that the kernel has kprobe events, and allows kprobes at the places of a trace.

    Raises:
        StateError: it has none.
        NotCompiledError: it allows none in a function.
    """

    def address(symbol: str) -> int:
        return next(iter(symbols.addresses(vmlinux, symbol)), 0)

    if functions.probes and not address("kprobe_dispatcher"):
        raise StateError(
            "the guest's kernel has no CONFIG_KPROBE_EVENTS, which its traces need", hint=FRAGMENT
        )
    parts = [(address(f"{each}_start"), address(f"{each}_end")) for each in _NO_PROBES]
    for place in trace.places:
        where, linked = functions.probes[place.probe].where, place.address - trace.slide
        if address(f"_kbl_addr_{where}") or any(low <= linked < high for low, high in parts):
            raise NotCompiledError(
                f"the guest's kernel allows no kprobes in {where}, because kprobes themselves need it"
                " (NOKPROBE_SYMBOL, noinstr)"
            )
