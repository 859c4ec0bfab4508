"""Names the addresses of a backtrace: functions, files and lines of the kernel, and functions of modules."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.hit import Call
from vmdebug.trace.unwinding.places import Places

_MODULE_SYMBOL = re.compile(r"^(?P<address>[0-9a-f]+) [tTwW] (?P<name>\S+)\t\[\S+\]$", re.MULTILINE)


class Stacks:
    """Names addresses of a kernel.

    Args:
        vmlinux: Its symbols.
        slide: How far KASLR has moved it.
    """

    def __init__(self, vmlinux: Path, slide: int) -> None:
        self._vmlinux = vmlinux
        self._slide = slide
        self._modules: list[tuple[int, str]] = []

    def learn_modules(self, kallsyms: str) -> None:
        """Learn the functions of modules.

        Args:
            kallsyms: The lines of /proc/kallsyms that are symbols of modules.
        """
        self._modules = sorted(
            (int(match["address"], 16), match["name"]) for match in _MODULE_SYMBOL.finditer(kallsyms)
        )

    def __call__(self, addresses: Sequence[int], entry: int) -> tuple[Call, ...]:
        """Return the frames of a backtrace.

        Args:
            addresses: Its addresses: the first one is in the probed function, and calls return to the others.
            entry: The address of the probe; 0 for a tracepoint.
        """
        found: list[Call] = []
        for number, address in enumerate(addresses):
            # A kprobe's program counter is behind the instruction that replaces the first one.
            at = entry if entry and number == 0 else address
            found += self._calls(at, before=int(number > 0))
        return tuple(found)

    def _calls(self, pc: int, before: int) -> tuple[Call, ...]:
        number = bisect.bisect(self._modules, pc - before, key=lambda each: each[0])
        if number and self._places.calls(pc, before)[0].function == "":
            return (Call(self._modules[number - 1][1], pc),)
        return self._places.calls(pc, before)

    @functools.cached_property
    def _places(self) -> Places:
        return Places(Kernel(self._vmlinux), self._slide)
