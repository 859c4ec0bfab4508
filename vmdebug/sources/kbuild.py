"""make in somebody's own kernel tree: its command line and its environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

# A make above us hands down its own flags and jobs; all else in a developer's shell (ARCH, LLVM, KCFLAGS,
# KBUILD_…) is meant for this tree.
_NOT_OURS = re.compile(r"^(?:MAKE(?:FLAGS|LEVEL|_TERMOUT|_TERMERR)|MFLAGS|MAKEOVERRIDES|GNUMAKEFLAGS|O|V|W)$")


def environment(of: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment that make runs in: the user's, its messages in English.

    Args:
        of: What it is made of; None is ours.
    """
    kept = {
        name: value for name, value in (os.environ if of is None else of).items() if not _NOT_OURS.match(name)
    }
    # depmod is where only root looks.
    path = f"{kept.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    # LC_MESSAGES is overridden by LC_ALL, and the compiler quotes in ASCII then.
    return {**kept, "PATH": path, "LC_ALL": "C"}


def argv(source: Path, directory: Path, *words: str) -> tuple[str, ...]:
    """Return a command line of make.

    Args:
        source: The kernel's source.
        directory: Where it is built; the source itself for a build in-tree.
        *words: Options, variables and targets.
    """
    outside = () if directory == source else (f"O={directory}",)
    return ("make", "-C", str(source), *outside, *words)
