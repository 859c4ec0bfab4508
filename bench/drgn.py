"""drgn: all tasks with names and stacks against `lx-ps` and `vmd-task` in GDB; the time to its first answer.

Both are asked in the same stopped guest, and have loaded their symbols. The first answer is that of a new
process: `vmdebug drgn`, which finds and proves vmlinux, against `drgn --qemu SOCKET -s VMLINUX` by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import vmdebug
from bench.figure import VMDEBUG, Figure, in_turn
from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.session import DebugSession

LIST_GOAL = 0.1
FIRST_GOAL = 1.2
LIST_ROUNDS = 5
FIRST_ROUNDS = 15
EXPRESSION = "print(len(list(for_each_task())))"
SECONDS = 600.0
FEWEST = 10
"""A booted guest has more tasks."""


def figures() -> list[Figure]:
    """Time both on one guest."""
    with vmdebug.start("builtin", cpus=2) as session:
        session.exec("true", timeout=SECONDS)
        first = _first(session)
        with session.gdb.held():
            listed = _listed(session)
    return [listed, first]


def _listed(session: DebugSession) -> Figure:
    gdb = session.gdb
    gdb.console(f"source {shipped.gdbinit() / 'vmdebug.gdb'}")  # vmd-task
    ours, baseline = in_turn(
        lambda: _enough(session.task_stacks()),
        lambda: _enough(gdb.console("lx-ps", timeout=SECONDS) + gdb.console("vmd-task *", timeout=SECONDS)),
        rounds=LIST_ROUNDS,
    )
    return Figure("drgn-tasks", ours * 1e3, baseline * 1e3, LIST_GOAL, "ms", "lx-ps and vmd-task in GDB")


def _enough(text: str) -> None:
    assert "kthreadd" in text, text[:200]
    assert text.count("schedule") > FEWEST, text[:200]


def _first(session: DebugSession) -> Figure:
    rundir, vmlinux = session.vm.rundir, session.vm.state.spec.kernel.vmlinux
    assert vmlinux is not None
    drgn = Path(sys.executable).with_name("drgn")
    ours, baseline = in_turn(
        lambda: _run(VMDEBUG, "drgn", session.name, "-e", EXPRESSION),
        lambda: _run(drgn, "--qemu", rundir.qmp, "-s", vmlinux, "-e", EXPRESSION),
        rounds=FIRST_ROUNDS,
    )
    return Figure("drgn-first-answer", ours * 1e3, baseline * 1e3, FIRST_GOAL, "ms", "drgn --qemu by hand")


def _run(*argv: str | Path) -> None:
    done = process.run(argv, deadline=Deadline.after(SECONDS))
    assert int(done.stdout) > FEWEST, done.stdout
