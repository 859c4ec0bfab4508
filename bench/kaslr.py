"""`attach --until start_kernel` on a halted guest with `--kaslr`, against the same without it.

The kernel is the builtin one with five-level page tables and XZ, see `la57.config`. Its decompressor runs
for a long time before the kernel is mapped. GDB waits meanwhile for a kernel whose address it does not know,
and this must not slow down the boot. The first run builds the kernel in the user's cache, which takes about 8
CPU minutes.
"""

from __future__ import annotations

from pathlib import Path

from bench import first_function
from bench.figure import Figure, in_turn
from vmdebug.deadline import Deadline
from vmdebug.sources import builtin

GOAL = 1.3
ROUNDS = 5
SECONDS = 3600.0
NAME = "bench-kaslr"
FRAGMENT = Path(__file__).with_name("la57.config")

_LA57 = "($cr4 >> 12 & 1) == 1"
"""Whether the page tables have five levels; CR4 in Intel SDM volume 3, 2.5."""


def figures() -> list[Figure]:
    """Time both under TCG: under KVM a breakpoint cannot be set before KASLR has moved the kernel."""
    fragments = (*builtin.default_fragments(), str(FRAGMENT))
    tree = builtin.build(fragments=fragments, deadline=Deadline.after(SECONDS)).directory
    ours, baseline = in_turn(lambda: _attach(tree, "--kaslr"), lambda: _attach(tree), rounds=ROUNDS)
    return [Figure("kaslr", ours, baseline, GOAL, "s", "the same without --kaslr")]


def _attach(tree: Path, *options: str) -> float:
    return first_function.times(tree, *options, name=NAME, holds=_LA57)[1]
