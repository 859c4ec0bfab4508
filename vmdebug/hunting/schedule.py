"""A schedule: everything that decides in which order a guest's tasks run; pure.

QEMU counts instructions (`-icount`): the guest's time passes with each instruction, and jumps to the next
timer while the guest is idle (`sleep=off`). Its clock is that time, and its random numbers come from a seed:
nothing of the host reaches the guest. So the same schedule gives the same run, instruction by instruction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from vmdebug.errors import UsageError

BASE_SHIFT = 4
"""The shift with which the template boots. A clone's is not smaller: its time must not jump back."""

SHIFTS = (4, 5, 6, 7)
"""2^shift nanoseconds pass with each instruction: with a larger one, timers fire after fewer instructions."""

GAPS = (0, 300, 1000, 3000, 10000)
"""Mean guest time between two disturbances, in microseconds; 0: none."""

FOREVER = (1 << 32) - 1

_CLOCK = "2026-01-01T00:00:00"


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule.

    Args:
        seed: Of QEMU's random numbers, and of the disturbances.
        shift: 2^shift nanoseconds of guest time pass with each instruction.
        gap: Mean guest time between two disturbances, in microseconds; 0: none. A disturbance prefers one of
            the workload's tasks, chosen at random, to all others until the next one.
        first: The number of the first disturbance that happens.
        count: How many happen.
    """

    seed: int
    shift: int = BASE_SHIFT
    gap: int = 0
    first: int = 0
    count: int = FOREVER

    def __str__(self) -> str:
        """Return it in the form that `parse` reads."""
        words = [f"seed={self.seed}", f"shift={self.shift}"]
        if self.gap:
            words.append(f"gap={self.gap}")
            words += [f"first={self.first}"] if self.first else []
            words += [f"count={self.count}"] if self.count != FOREVER else []
        return ",".join(words)


def of_seed(seed: int) -> Schedule:
    """Return the schedule of a seed: the same one in each version of Python."""
    digest = hashlib.sha256(f"schedule {seed}".encode()).digest()
    return Schedule(seed=seed, shift=SHIFTS[digest[0] % len(SHIFTS)], gap=GAPS[digest[1] % len(GAPS)])


def parse(text: str) -> Schedule:
    """Return a schedule from its written form, "seed=7,shift=5,gap=1000,first=0,count=12".

    Raises:
        UsageError: it is not one.
    """
    said = {}
    for word in text.split(","):
        name, _, number = word.partition("=")
        if name not in Schedule.__struct_fields__ or not number.isdecimal():
            raise UsageError(
                f"{word!r} is not a part of a schedule",
                hint="write it as `vmdebug hunt` prints it: seed=7,shift=5,gap=1000,count=12",
            )
        said[name] = int(number)
    if "seed" not in said:
        raise UsageError(f"the schedule {text!r} has no seed", hint="add it: seed=7")
    found = Schedule(**said)
    if (
        found.shift not in range(BASE_SHIFT, 11)
        or max(found.seed >> 32, found.gap >> 31)
        or found.count > FOREVER
    ):
        raise UsageError(
            f"the schedule {text!r} is out of range",
            hint=f"shift is {BASE_SHIFT} to 10, the others have at most 31 bits",
        )
    return found


def qemu_arguments(schedule: Schedule) -> tuple[str, ...]:
    """Return QEMU's arguments for a schedule.

    ioeventfd is off, so that the device itself answers while the guest waits, and no thread at its own time.
    """
    return (
        "-icount",
        f"shift={schedule.shift},sleep=off",
        "-rtc",
        f"clock=vm,base={_CLOCK}",
        "-seed",
        str(schedule.seed),
        "-global",
        "virtio-pci.ioeventfd=off",
        "-global",
        "apic-common.vapic=off",
    )


def nonce(schedule: Schedule, command: int) -> bytes:
    """Return the bytes that the agent writes to /dev/urandom before a command, the same in each run."""
    return hashlib.sha256(f"nonce {schedule.seed} {command}".encode()).digest()[:16]


def disturbance(schedule: Schedule, command: int) -> bytes:
    """Return the payload of the agent's frame J for a command; b"" without disturbances. See `agent.c`."""
    if not schedule.gap:
        return b""
    seed = hashlib.sha256(f"disturb {schedule.seed} {command}".encode()).digest()[:8]
    return seed + b"".join(
        number.to_bytes(4, "little") for number in (schedule.gap, schedule.first, schedule.count)
    )


def simpler(schedule: Schedule) -> Iterator[Schedule]:
    """Yield the schedules with one knob less, the simplest first."""
    replace = msgspec.structs.replace
    if schedule.gap:
        yield replace(schedule, gap=0, first=0, count=FOREVER)
    if schedule.shift != BASE_SHIFT:
        yield replace(schedule, shift=BASE_SHIFT)
