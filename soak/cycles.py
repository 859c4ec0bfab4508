"""Start and stop guests many times in one process, and check that it holds no more at the end."""

from __future__ import annotations

import gc
import os
import random
import re
import sys
import threading
from dataclasses import astuple, dataclass
from pathlib import Path

import vmdebug
from soak.result import Result
from soak.world import world
from vmdebug.errors import VmdebugError

WARM_UP = 10
"""Cycles before the first count, which fill the caches and import the modules."""

EACH_GDB = 5
"""Every how many cycles one uses GDB."""

HALTED = 0.2
"""The share of guests that start halted."""

MEMORY_GROWTH_KIB = 16 * 1024
"""How much memory the process may gain between the first count and the last."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds at one moment.

    Args:
        descriptors: Open file descriptors.
        threads: Live threads.
        children: Child processes.
        shared: Files in /dev/shm.
        memory: Resident memory, KiB.
    """

    descriptors: int
    threads: int
    children: int
    shared: int
    memory: int

    @classmethod
    def now(cls) -> Held:
        """Return what this process holds now."""
        gc.collect()
        status = Path("/proc/self/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert resident is not None
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return cls(
            descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - no Path is needed
            threads=threading.active_count(),
            children=len(children),
            shared=len(list(Path("/dev/shm").iterdir())),
            memory=int(resident[1]),
        )


def run(count: int, rng: random.Random) -> Result:
    """Start, use and stop a guest `count` times."""
    failures: list[str] = []
    with world() as here:
        os.environ.update(here.env)
        first = last = Held.now()
        for number in range(count):
            try:
                _cycle(number, rng)
            except VmdebugError as error:
                failures.append(f"cycle {number}: {error}")
                print(f"  {failures[-1]}", file=sys.stderr, flush=True)
            if number == min(WARM_UP, count - 1):
                first = Held.now()
            if number % 50 == 0:
                print(f"  cycle {number}: {Held.now()}", file=sys.stderr, flush=True)
        last = Held.now()
        failures += [f"left: {each}" for each in here.left()]
    if astuple(last)[:-1] != astuple(first)[:-1]:
        failures.append(f"the process holds {last} at the end, but held {first} at the beginning")
    if last.memory - first.memory > MEMORY_GROWTH_KIB:
        failures.append(f"its memory grew from {first.memory} to {last.memory} KiB")
    return Result(f"{count} cycles; at first {first}, at last {last}", tuple(failures))


def _cycle(number: int, rng: random.Random) -> None:
    with vmdebug.start("builtin", accel="tcg", halt=rng.random() < HALTED) as session:
        if session.vm.state.spec.halt:
            session.gdb.cont(wait=False)
        assert session.exec("echo hello", timeout=120).stdout == "hello\n"
        if number % EACH_GDB == 0:
            assert session.gdb.breakpoint("do_sys_openat2").number
