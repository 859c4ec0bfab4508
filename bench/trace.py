"""Traced hits per second in a `dd bs=1` loop: `gdb.trace` against a bare packet loop, and against pygdbmi.

All run on the same guest and workload, alternately. The packet loop only reads the registers and continues,
while `gdb.trace` also records an argument, the task and the guest's time. The pygdbmi loop does what a
script without vmdebug does: continue, wait for the stop, evaluate the argument.
"""

from __future__ import annotations

import os
import statistics
import time

from pygdbmi.gdbcontroller import GdbController

import vmdebug
from bench.figure import Figure
from bench.packets import Loop
from vmdebug.deadline import Deadline
from vmdebug.debugger import startup
from vmdebug.session import DebugSession

GOAL = 0.9
PYGDBMI_GOAL = 10.0
ROUNDS = 9
READS = 300
PYGDBMI_HITS = 15
SECONDS = 60.0
SYMBOL = "vfs_read"


def figures() -> list[Figure]:
    """Time all three."""
    with vmdebug.start("builtin", accel="tcg") as session:
        session.exec("true", timeout=SECONDS)
        breakpoint_ = session.gdb.breakpoint(SYMBOL)
        breakpoint_.delete()
        traced, bare = [], []
        for _ in range(ROUNDS):
            traced.append(_traced(session))
            session.gdb.detach()
            bare.append(_bare(session, breakpoint_.address))
            _connect(session)
        ours, baseline = statistics.median(traced), statistics.median(bare)
        session.gdb.detach()
        pygdbmi = _pygdbmi(session)
    return [
        Figure("trace", ours, baseline, GOAL, "hits/s", "a bare packet loop", more=True),
        Figure("trace-pygdbmi", ours, pygdbmi, PYGDBMI_GOAL, "hits/s", "pygdbmi's controller", more=True),
    ]


def _traced(session: DebugSession) -> float:
    with session.gdb.trace(SYMBOL, args=["count"]) as hits:
        _workload(session)
    assert sum(hit.args["count"] == 1 for hit in hits) >= READS
    return _rate([hit.time for hit in hits])


def _bare(session: DebugSession, address: int) -> float:
    loop = Loop(session.vm.state.gdb, address)
    with loop.running():
        _workload(session)
    assert len(loop.times) >= READS
    return _rate(loop.times)


def _connect(session: DebugSession) -> None:
    session.gdb.connect(session.vm.state.gdb, timeout=SECONDS, interrupter=session.vm.pause)


def _workload(session: DebugSession) -> None:
    # Not with session.exec, which would ask the session's own GDB whether the guest runs.
    line = f"dd if=/dev/zero of=/dev/null bs=1 count={READS}"
    done = session.console.line.shell.execute(line, deadline=Deadline.after(SECONDS))
    assert done.status == 0, done.stderr


def _rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def _pygdbmi(session: DebugSession) -> float:
    vmlinux = session.vm.state.spec.kernel.vmlinux
    controller = GdbController([*startup.mi_argv("gdb"), os.fspath(vmlinux or "")])
    try:
        controller.write("-gdb-set mi-async on", timeout_sec=10)
        controller.write(f"-target-select remote {session.vm.state.gdb}", timeout_sec=10)
        controller.write(f"-break-insert {SYMBOL}", timeout_sec=10)
        session.console.sendline(f"dd if=/dev/zero of=/dev/null bs=1 count={READS}")
        begin = time.perf_counter()
        for _ in range(PYGDBMI_HITS):
            records = controller.write("-exec-continue")
            while not any(record["message"] == "stopped" for record in records):
                records = controller.get_gdb_response()
            controller.write("-data-evaluate-expression count")
        return PYGDBMI_HITS / (time.perf_counter() - begin)
    finally:
        controller.exit()
