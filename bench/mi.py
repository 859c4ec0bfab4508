"""The cost of a GDB/MI command: `Connection.fetch` against a bare pipe loop, and against pygdbmi's `write()`.

The bare loop writes `N-data-evaluate-expression 1` and reads lines until one starts with `N^`: no client can
be faster. The loops alternate in short rounds, on GDBs with the same command line, all on one CPU. On two
CPUs, half of the result would depend on where the scheduler wakes the other process; on one CPU, the ratio is
that of all work done.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator

from pygdbmi.gdbcontroller import GdbController

from bench.figure import Figure, in_turn
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.debugger import startup
from vmdebug.debugger.connection import Connection

GOAL = 1.5
PYGDBMI_GOAL = 0.01
COMMANDS = 200
ROUNDS = 61
WORDS = "-data-evaluate-expression 1"


def figures() -> list[Figure]:
    """Time all three."""
    with _one_cpu():
        gdb = Connection.start(startup.mi_argv("gdb"), env=os.environ)
        try:
            return [_against_bare_loop(gdb), _against_pygdbmi(gdb)]
        finally:
            gdb.close(Deadline.after(10))


@contextlib.contextmanager
def _one_cpu() -> Iterator[None]:
    """Run this process, and those that it starts, on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _against_bare_loop(gdb: Connection) -> Figure:
    child = process.start(startup.mi_argv("gdb"), stdin=process.PIPE, stdout=process.PIPE)
    stdin, stdout = child.stdin, child.stdout
    assert stdin is not None
    assert stdout is not None
    tokens = itertools.count(1)

    def bare() -> float:
        begin = time.perf_counter()
        for token in itertools.islice(tokens, COMMANDS):
            stdin.write(b"%d%s\n" % (token, WORDS.encode()))
            stdin.flush()
            answer = b"%d^" % token
            for line in stdout:
                if line.startswith(answer):
                    break
        return (time.perf_counter() - begin) / COMMANDS

    try:
        ours, baseline = in_turn(lambda: _ours(gdb), bare, rounds=ROUNDS, warm_up=3)
    finally:
        stdin.close()
        stdout.close()
        process.end_group(child)
    return Figure("mi", ours * 1e6, baseline * 1e6, GOAL, "µs", "a bare pipe loop on GDB")


def _against_pygdbmi(gdb: Connection) -> Figure:
    controller = GdbController(startup.mi_argv("gdb"))
    try:
        ours, baseline = in_turn(lambda: _ours(gdb), lambda: _write(controller), rounds=5)
    finally:
        controller.exit()
    return Figure("mi-pygdbmi", ours * 1e6, baseline * 1e6, PYGDBMI_GOAL, "µs", "pygdbmi's write()")


def _ours(gdb: Connection) -> float:
    begin = time.perf_counter()
    for _ in range(COMMANDS):
        gdb.fetch(WORDS)
    return (time.perf_counter() - begin) / COMMANDS


def _write(controller: GdbController) -> float:
    begin = time.perf_counter()
    controller.write(WORDS)
    return time.perf_counter() - begin
