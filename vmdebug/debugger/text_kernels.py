"""Finds out which kernels a text with traces is of, and whether a vmlinux is theirs.

A log begins with the kernel's `linux_banner`. A trace has the release and the number of the build, and with
CONFIG_STACKTRACE_BUILD_ID the build-id: see dump_stack_print_info of lib/dump_stack.c.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

from vmdebug.kimage import Vmlinux

_BANNER = re.compile(r"Linux version (?P<banner>(?P<release>\d\S+) \(\S+@\S+\) \([^\n]*)")
_STACK = re.compile(
    r"\bCPU: \d+ (?:UID: \d+ )?PID: \d+ Comm: [^\n]*(?:Not tainted|Tainted:(?: +[A-Z](?![\w.]))*) +"
    r"(?P<release>\d\S+) (?P<number>#\S+)(?P<rest>[^\n]*)"
)
_BUILD_ID = re.compile(r"\b[0-9a-f]{32,40}\b")
_NUMBER = re.compile(r" (#\d+\S*)")


class Said(NamedTuple):
    """A kernel, as a text has it; a field is "" if the text does not say it.

    Args:
        release: `uname -r`.
        number: The number of the build: "#1".
        banner: `linux_banner` without "Linux version", perhaps without its end.
        build_id: The build-id in hex.
    """

    release: str
    number: str = ""
    banner: str = ""
    build_id: str = ""

    def __str__(self) -> str:
        number = f" {self.number}" if self.number else ""
        build_id = f", build-id {self.build_id}" if self.build_id else ""
        return f"{self.release}{number}{build_id}"


def boots(text: str) -> list[str]:
    """Split a text before each line with a kernel's banner: what follows may be of another kernel."""
    lines = [text.rfind("\n", 0, found.start()) + 1 for found in _BANNER.finditer(text)]
    places = [0, *(each for each in lines if each), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)] if text else []


def said(text: str) -> tuple[Said, ...]:
    """Return the kernels that a text names, each once."""
    found: dict[Said, None] = {}
    for match in _BANNER.finditer(text):
        number = _NUMBER.search(match["banner"])
        banner = " ".join(match["banner"].split())
        found[Said(match["release"], number[1] if number else "", banner)] = None
    for match in _STACK.finditer(text):
        build_id = _BUILD_ID.search(match["rest"])
        found[Said(match["release"], match["number"], build_id=build_id[0] if build_id else "")] = None
    return tuple(found)


def is_other(kernels: Iterable[Said], vmlinux: Vmlinux) -> bool:
    """Whether none of the kernels that a text names can be that of a vmlinux; False if it names none."""
    those = tuple(kernels)
    return bool(those) and all(difference(each, vmlinux) for each in those)


def difference(kernel: Said, vmlinux: Vmlinux) -> str:
    """Return how a kernel in a text differs from a vmlinux: "release 6.1, not 6.2"; "" if it does not."""
    ours = " ".join(vmlinux.banner.split())
    number = _NUMBER.search(ours)
    if kernel.build_id and vmlinux.build_id:
        same, theirs, wanted = kernel.build_id == vmlinux.build_id, kernel.build_id, vmlinux.build_id
        return "" if same else f"build-id {theirs}, not {wanted}"
    if ours and kernel.release != vmlinux.release:
        return f"release {kernel.release}, not {vmlinux.release}"
    if ours and kernel.banner:
        # The end may be missing: mail programs break lines, and serial lines lose characters.
        same = ours.startswith(kernel.banner) or kernel.banner.startswith(ours)
        return "" if same else f"version {kernel.banner}, not {ours}"
    if number and kernel.number and kernel.number != number[1]:
        return f"build {kernel.number}, not {number[1]}"
    return ""
