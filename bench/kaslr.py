"""`attach --until start_kernel` on a halted guest whose kernel moves (`--kaslr`), against one that does not.

The kernel is the builtin one, compressed with XZ, whose decompressor runs long before the kernel is mapped:
that part of the boot must not become slower because GDB waits for a kernel whose address is unknown.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

from bench import first_function
from bench.figure import Figure, in_turn
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.sources import builtin, kbuild

GOAL = 1.3
ROUNDS = 5
SECONDS = 600.0
NAME = "bench-kaslr"

_BOOT = Path("arch/x86/boot")
_RELOCATIONS = "vmlinux.relocs"


def figures() -> list[Figure]:
    """Time both under TCG: under KVM no breakpoint can wait for a kernel that moves."""
    with tempfile.TemporaryDirectory(prefix="vmd-") as name:
        tree = Path(name) / "tree"
        _pack_with_xz(tree)
        ours, baseline = in_turn(lambda: _attach(tree, "--kaslr"), lambda: _attach(tree), rounds=ROUNDS)
    return [Figure("kaslr", ours, baseline, GOAL, "s", "the same without --kaslr")]


def _attach(tree: Path, *options: str) -> float:
    return first_function.times(tree, *options, name=NAME)[1]


def _pack_with_xz(tree: Path) -> None:
    """Copy the builtin kernel's build tree, and make its boot image anew, with KERNEL_XZ.

    The tree has no object files any more, so make must take vmlinux as it is, and the relocations for KASLR
    from the first build: vmlinux has none left.
    """
    kernel = builtin.built()
    assert kernel is not None, "run `vmdebug kernel build`"
    shutil.copytree(kernel.directory, tree, symlinks=True, ignore=shutil.ignore_patterns("install"))
    kept = shutil.move(tree / _BOOT / "compressed" / _RELOCATIONS, tree.parent)
    shutil.rmtree(tree / _BOOT / "compressed")
    (tree / _BOOT / "bzImage").unlink()
    config = (tree / ".config").read_text().replace("CONFIG_KERNEL_GZIP=y", "CONFIG_KERNEL_XZ=y")
    (tree / ".config").write_text(config.replace("# CONFIG_KERNEL_XZ is not set\n", ""))
    tool = tree.parent / "relocs"
    tool.write_text(f'#!/bin/sh\n[ "$1" = --abs-relocs ] || cat {shlex.quote(str(kept))}\n')
    tool.chmod(0o755)
    # As the source's Makefile calls itself for an O= tree, which would not pass `-o` on.
    variables = {"sub_make_done": "1", "abs_srctree": str(kernel.source), "abs_objtree": str(tree)}
    argv = ["make", "-f", str(kernel.source / "Makefile"), "-rR", f"--include-dir={kernel.source}"]
    process.run(
        [*argv, "-j2", "-o", "vmlinux", f"CMD_RELOCS={tool}", "bzImage"],
        cwd=tree,
        env=kbuild.clean_environment() | variables,
        deadline=Deadline.after(SECONDS),
    )
