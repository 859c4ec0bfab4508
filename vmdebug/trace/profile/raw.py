"""Samples as collectors take them: with addresses, and with what names those of user space."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec


class RawSample(NamedTuple):
    """What a CPU executed at one moment.

    Args:
        time: Nanoseconds on the collector's clock.
        cpu: The CPU.
        pid: The process (`task->tgid`).
        tid: The thread (`task->pid`); 0 for the idle task of the CPU.
        comm: The thread's name; "" if unknown.
        kernel: The program counters in the kernel, innermost first; all but an interrupted one are the
            addresses that calls return to.
        user: The same in user space.
        weight: How much the sample stands for, in `Collected.unit`.
    """

    time: int
    cpu: int
    pid: int
    tid: int
    comm: str
    kernel: tuple[int, ...]
    user: tuple[int, ...]
    weight: int


class Mapped(NamedTuple):
    """A part of a program or library in the memory of a process.

    Args:
        start: Its address.
        end: The first address behind it.
        offset: Its offset in the file, in bytes.
        path: The file, in the guest; or the name that /proc/PID/maps has, as `[vdso]`.
        pid: A process that has it, so that the file can be read through /proc/PID/root.
    """

    start: int
    end: int
    offset: int
    path: str
    pid: int = 0


class FindMapping(Protocol):
    """Finds the mapping of an address in a process at a time."""

    def __call__(self, pid: int, address: int, time: int) -> Mapped | None:
        """Return it; None if it is not known."""


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What a collector has collected.

    Args:
        samples: The samples, in order of time.
        unit: What their weights count: "ns" or "cycles".
        period: The weight of one sample; 0 if it varies.
        seconds: How long the profile took, on the collector's clock.
        kallsyms: The lines of the guest's /proc/kallsyms that are needed: of modules, or all if there is no
            vmlinux; "" if they are not known.
        mapping: Finds the mapping of an address of user space.
        read_file: Returns a file of the guest, as a process sees it; None if it cannot be read.
        notes: What is missing, and why.
    """

    samples: list[RawSample]
    unit: str
    period: int
    seconds: float
    kallsyms: str
    mapping: FindMapping
    read_file: Callable[[int, str], bytes | None]
    notes: tuple[str, ...] = ()
