"""A profile: samples with named stacks. Frozen, and the same as JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug.errors import HostError, UsageError

FORMAT = 1
"""The version of the JSON."""

Kind = Literal["kernel", "module", "user"]


class ProfileFrame(msgspec.Struct, frozen=True, array_like=True):
    """A function in stacks.

    Args:
        name: Its name; or an address in hexadecimal, if its file has no symbol there.
        where: What it belongs to: "vmlinux", a module of the kernel, the file name of a program or library;
            "" if unknown.
        kind: Whether it is in the kernel, one of its modules or user space.
    """

    name: str
    where: str
    kind: Kind


class ProfileTask(msgspec.Struct, frozen=True, array_like=True):
    """A thread.

    Args:
        pid: Its process (`task->tgid`).
        tid: Its `task->pid`.
        comm: Its name at the time of the sample.
    """

    pid: int
    tid: int
    comm: str


class ProfileSample(msgspec.Struct, frozen=True, array_like=True):
    """What a CPU executed at one moment.

    Args:
        time: Seconds since the profile began.
        cpu: The CPU, from 0.
        task: The index of the thread in `Profile.tasks`.
        stack: The index of the stack in `Profile.stacks`.
        weight: How much it stands for, in `Profile.unit`.
    """

    time: float
    cpu: int
    task: int
    stack: int
    weight: int


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What the CPUs of a guest have executed.

    Args:
        unit: What weights count: "ns" or "cycles".
        period: The weight of one sample; 0 if it varies.
        seconds: How long it took.
        collector: Who took the samples: "the guest's kernel".
        vm: The name of the VM.
        kernel: The kernel's release; "" if unknown.
        frames: The functions.
        stacks: Indexes of `frames`, the outermost first.
        tasks: The threads.
        samples: The samples, in order of time.
        notes: What is missing, and why.
        format: See `FORMAT`.
    """

    unit: str
    period: int
    seconds: float
    collector: str
    vm: str
    kernel: str
    frames: tuple[ProfileFrame, ...] = ()
    stacks: tuple[tuple[int, ...], ...] = ()
    tasks: tuple[ProfileTask, ...] = ()
    samples: tuple[ProfileSample, ...] = ()
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def total(self) -> int:
        """The weight of all samples."""
        return sum(each.weight for each in self.samples)

    def folded(self) -> dict[tuple[ProfileFrame, ...], int]:
        """Return the weight of each stack; its first frame is the name of the task."""
        weights: Counter[tuple[str, int]] = Counter()
        for sample in self.samples:
            weights[self.tasks[sample.task].comm, sample.stack] += sample.weight
        found: dict[tuple[ProfileFrame, ...], int] = {}
        for (comm, stack), weight in weights.items():
            frames = (task_frame(comm), *(self.frames[each] for each in self.stacks[stack]))
            found[frames] = found.get(frames, 0) + weight
        return found

    def functions(self) -> list[tuple[ProfileFrame, int, int]]:
        """Return each function, its own weight, and its weight with what it calls; the heaviest first."""
        own: Counter[int] = Counter()
        whole: Counter[int] = Counter()
        for stack, weight in self._by_stack().items():
            frames = self.stacks[stack]
            if frames:
                own[frames[-1]] += weight
            for frame in set(frames):
                whole[frame] += weight
        order = sorted(whole, key=lambda each: (-own[each], -whole[each], self.frames[each].name))
        return [(self.frames[each], own[each], whole[each]) for each in order]

    def by_task(self) -> list[tuple[ProfileTask, int]]:
        """Return each thread with its weight, the heaviest first."""
        weights: Counter[int] = Counter()
        for sample in self.samples:
            weights[sample.task] += sample.weight
        return [(self.tasks[each], weight) for each, weight in weights.most_common()]

    def _by_stack(self) -> Counter[int]:
        weights: Counter[int] = Counter()
        for sample in self.samples:
            weights[sample.stack] += sample.weight
        return weights

    def encode(self) -> bytes:
        """Return it as JSON; `load` reads it."""
        return msgspec.json.encode(self) + b"\n"

    def __iter__(self) -> Iterator[ProfileSample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Return a profile that `vmdebug profile --format json` or `Profile.encode` has written.

        Raises:
            UsageError: the file is no profile.
            HostError: it cannot be read.
        """
        hint = "write one with `vmdebug profile -o FILE.json`"
        try:
            found = msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except FileNotFoundError as error:
            raise UsageError(f"there is no file {os.fspath(path)}", hint=hint) from error
        except OSError as error:
            raise HostError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            raise UsageError(f"{os.fspath(path)} is no profile of vmdebug: {error}", hint=hint) from error
        found.check(os.fspath(path))
        return found

    def check(self, name: str) -> None:
        """Check a profile that was read.

        Args:
            name: Its file, for the error.

        Raises:
            UsageError: an index is out of range, or another version of vmdebug has written it.
        """
        if self.format != FORMAT:
            raise UsageError(f"{name} is a profile of another version of vmdebug", hint="take it anew")
        indexes = ((each.task, len(self.tasks)) for each in self.samples)
        stacks = ((each.stack, len(self.stacks)) for each in self.samples)
        frames = ((each, len(self.frames)) for stack in self.stacks for each in stack)
        for indexed in (indexes, stacks, frames):
            if any(not 0 <= index < count for index, count in indexed):
                raise UsageError(
                    f"{name} is a damaged profile: an index is out of range", hint="take it anew"
                )


def task_frame(comm: str) -> ProfileFrame:
    """Return the frame below a task's stacks, which has its name."""
    return ProfileFrame(comm or "unknown task", "", "user")
