"""The lines of a kernel tree that a patch changes, from `git diff`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError

GIT_SECONDS = 120.0
"""How long git may take to compare a tree."""

_FILE = re.compile(r'^\+\+\+ "?b/(.*?)"?\t?$')
_HUNK = re.compile(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@")


def argv(root: Path, revision: str) -> tuple[str, ...]:
    """Return the command that prints the changes of a tree since a revision."""
    plain = ("--no-ext-diff", "--no-color", "--no-renames", "--src-prefix=a/", "--dst-prefix=b/")
    quoting = ("-c", "core.quotePath=false")
    return (
        "git",
        "-C",
        str(root),
        *quoting,
        "diff",
        "-U0",
        "--relative",
        *plain,
        "--end-of-options",
        revision,
        "--",
    )


def changed(root: Path, revision: str, deadline: Deadline) -> dict[str, frozenset[int]]:
    """Return the lines that are new or changed since a revision, by the paths of the files.

    Args:
        root: The kernel's tree.
        revision: A revision of git: "HEAD", "master".
        deadline: When git is killed.

    Raises:
        UsageError: the tree is not in git, or there is no such revision.
        HostError: there is no git.
        DeadlineError: git took too long.
    """
    program = process.find("git", package="git")
    try:
        said = process.run([program, *argv(root, revision)[1:]], deadline=deadline).stdout
    except BuildError as error:
        raise UsageError(
            f"git does not compare {root} with {revision!r}",
            hint="give a revision of the kernel's tree, such as HEAD or master; the tree must be in git",
            detail=error.detail,
        ) from error
    return {str(root / file): lines for file, lines in parse(said).items()}


def parse(diff: str) -> dict[str, frozenset[int]]:
    """Return the new and changed lines of each file of a `git diff -U0`."""
    found: dict[str, frozenset[int]] = {}
    file = ""
    for line in diff.splitlines():
        if named := _FILE.match(line):
            file = named[1]
        elif (hunk := _HUNK.match(line)) and file:
            first, count = int(hunk[1]), int(hunk[2] or "1")
            found[file] = found.get(file, frozenset()) | frozenset(range(first, first + count))
    return found


def ranges(lines: frozenset[int]) -> str:
    """Return numbers of lines for people: "3-5, 9"."""
    parts: list[list[int]] = []
    for line in sorted(lines):
        if parts and line == parts[-1][1] + 1:
            parts[-1][1] = line
        else:
            parts.append([line, line])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def unreached(
    changes: Mapping[str, frozenset[int]],
    code: Mapping[str, frozenset[int]],
    executed: Mapping[str, frozenset[int]],
) -> dict[str, frozenset[int]]:
    """Return the changed lines with code that were not executed, by file; files without any are left out."""
    found = {
        file: (lines & code[file]) - executed.get(file, frozenset())
        for file, lines in changes.items()
        if file in code
    }
    return {file: lines for file, lines in found.items() if lines}
