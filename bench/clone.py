"""Clones against boots of the same guest: time to the shell, time to a breakpoint in GDB, and memory.

A boot is timed from `launch`, and a clone from `Template.clone`, until the shell answers. Making the
template, which happens once in a test run, and stopping the VMs are not timed. The memory is the sum of
`Private_*` in /proc/PID/smaps_rollup of one of two clones.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from bench.figure import Figure, in_turn
from vmdebug import sources
from vmdebug.deadline import Deadline
from vmdebug.debugger.preloaded import PreloadedGdb
from vmdebug.guest import LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.session import DebugSession
from vmdebug.vm import Vm, launch, wait_shell
from vmdebug.vm.clones import saved_guest
from vmdebug.vm.clones.template import Template, template

READY_GOAL = 0.1
GDB_GOAL = 0.2
MEMORY_GOAL = 0.25
SECONDS = 300.0
ROUNDS = 7
SYMBOL = "do_sys_openat2"


def figures() -> list[Figure]:
    """Time clones and boots alternately, under TCG."""
    spec = sources.resolve(GuestOptions(source="builtin", accel="tcg"), report=silent, deadline=_soon())
    with template(spec, timeout=SECONDS) as made:
        assert made.how == "clone", made.reason
        ready, boot = in_turn(
            lambda: _timed(lambda: made.clone(timeout=SECONDS), _leave),
            lambda: _timed(lambda: _boot(spec), _leave),
            rounds=ROUNDS,
        )
        attached, boot_attached = in_turn(
            lambda: _attached(spec, lambda: made.clone(timeout=SECONDS)),
            lambda: _attached(spec, lambda: _boot(spec)),
            rounds=ROUNDS,
        )
        private = _private_mib(made)
    ram = float(saved_guest.memory_mib(spec))
    return [
        Figure("clone-ready", ready, boot, READY_GOAL, "s", "a boot to the shell"),
        Figure("clone-gdb", attached, boot_attached, GDB_GOAL, "s", "a boot, GDB the same way"),
        Figure("clone-memory", private, ram, MEMORY_GOAL, "MiB", "the guest's RAM"),
    ]


def _soon() -> Deadline:
    return Deadline.after(SECONDS)


def _timed(make: Callable[[], Vm], work: Callable[[Vm], None]) -> float:
    begin = time.perf_counter()
    vm = make()
    try:
        work(vm)
        return time.perf_counter() - begin
    finally:
        vm.stop(force=True)


def _boot(spec: LaunchSpec) -> Vm:
    vm = launch(spec, bound=True, exact_name=False, timeout=SECONDS)
    wait_shell.wait(vm, copy=False, deadline=_soon())
    return vm


def _leave(vm: Vm) -> None:
    """Do nothing: the shell has already answered."""


def _attached(spec: LaunchSpec, make: Callable[[], Vm]) -> float:
    """Time the start of a VM, and of a GDB that loads symbols meanwhile, until a breakpoint is set."""
    begin = time.perf_counter()
    with (
        PreloadedGdb.start(spec.kernel) as preloaded,
        DebugSession(make(), owned=True, preloaded=preloaded) as session,
    ):
        assert session.gdb.breakpoint(SYMBOL).number
        return time.perf_counter() - begin


def _private_mib(made: Template) -> float:
    with made.clone(timeout=SECONDS) as one, made.clone(timeout=SECONDS) as other:
        one.exec("true")
        other.exec("true")
        text = Path(f"/proc/{other.state.pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))) / 1024
