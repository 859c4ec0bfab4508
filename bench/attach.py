"""`vmdebug attach` against plain `gdb vmlinux` and `target remote`, both until the first prompt.

`attach` checks the build-id, and adds vmdebug's commands and those of the kernel's scripts, which it loads at
their first use. Plain GDB does none of this, and reads the symbols without an index cache, which is off by
default. The builtin kernel is very small; to measure another guest, set $VMDEBUG_BENCH_GUEST to arguments of
`vmdebug start`.
"""

from __future__ import annotations

import os
import shlex

from bench.figure import VMDEBUG, Figure, in_turn
from vmdebug import process, vm
from vmdebug.deadline import Deadline

GOAL = 0.8
ROUNDS = 9
SECONDS = 300.0
NAME = "bench-attach"


def figures() -> list[Figure]:
    """Time both on one running guest; each detaches at its end."""
    guest = shlex.split(os.environ.get("VMDEBUG_BENCH_GUEST", "builtin"))
    _run(VMDEBUG, "start", *guest, "--name", NAME)
    try:
        _run(VMDEBUG, "exec", NAME, "--", "true")
        machine = vm.find(NAME)
        vmlinux = machine.state.spec.kernel.vmlinux
        assert vmlinux is not None
        plain = ("gdb", "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off")
        ours, baseline = in_turn(
            lambda: _run(VMDEBUG, "attach", NAME, "--batch"),
            lambda: _run(*plain, str(vmlinux), "-ex", f"target remote {machine.state.gdb}"),
            rounds=ROUNDS,
        )
    finally:
        _run(VMDEBUG, "stop", "--force", NAME)
    return [Figure("attach", ours, baseline, GOAL, "s", "gdb vmlinux, target remote")]


def _run(*argv: object) -> None:
    process.run([str(word) for word in argv], deadline=Deadline.after(SECONDS))
