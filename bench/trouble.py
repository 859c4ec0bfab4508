"""The search for kernel trouble at the end of a test, against the start of the test's guest, a clone.

The search reads what the kernel has printed since the test's start from guest memory, as the pytest plugin
does. A clone is timed until its shell answers. A clone's kernel log begins with its template's. Only the
first search of a test run reads that part; it is not timed.
"""

from __future__ import annotations

import time

from bench.figure import Figure, in_turn
from vmdebug import sources
from vmdebug.deadline import Deadline
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.vm import Vm
from vmdebug.vm.clones.template import template
from vmdebug.vm.kernel_log import KernelLog

GOAL = 0.1
SECONDS = 300.0
ROUNDS = 15


def figures() -> list[Figure]:
    """Time searches and clones alternately, under TCG."""
    spec = sources.resolve(GuestOptions(source="builtin", accel="tcg"), report=silent, deadline=_soon())
    with template(spec, timeout=SECONDS) as made:
        assert made.how == "clone", made.reason
        clones: list[Vm] = []

        def clone() -> float:
            begin = time.perf_counter()
            clones.append(made.clone(timeout=SECONDS))
            return time.perf_counter() - begin

        def look() -> float:
            if not clones:
                clone()
            with clones.pop() as vm, KernelLog(vm) as log:
                vm.exec("echo the test says this >/dev/kmsg")
                begin = time.perf_counter()
                assert log.look(deadline=_soon()) == "running"
                return time.perf_counter() - begin

        try:
            took, started = in_turn(look, clone, rounds=ROUNDS, warm_up=2)
        finally:
            for each in clones:
                each.stop(force=True)
    return [Figure("trouble-look", took, started, GOAL, "s", "a clone of the guest")]


def _soon() -> Deadline:
    return Deadline.after(SECONDS)
