"""What a seed says about the CPUs of a guest: which is held, where, and until when; pure.

The guest's CPUs run at the host's speed, so a seed gives the same holds, and not the same run.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import msgspec

_MILLISECONDS = (1, 3, 10, 30)
_LAGS = (0, 1, 3, 10)
_PAUSES = (0, 0, 1, 10, 50)
_PASSES = (0, 0, 0, 1, 3)


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """One hold of a CPU.

    Args:
        pause: Milliseconds from the end of the hold before, with no CPU held.
        point: The number of the point at which the CPU is held.
        cpu: Which CPU; None: the first one that comes.
        passes: How often it may pass the point before.
        until: The number of the point at which another CPU ends the hold; None: only the time does.
        milliseconds: The longest time that the CPU is held while others run.
        lag: Milliseconds that the other CPU runs on after `until`.
    """

    pause: int
    point: int
    cpu: int | None
    passes: int
    until: int | None
    milliseconds: int
    lag: int


def of_seed(seed: int, *, points: int, cpus: int) -> Iterator[Hold]:
    """Yield the holds of a seed, without an end: the same ones in each version of Python.

    Args:
        seed: The seed.
        points: How many points there are.
        cpus: How many CPUs the guest has.
    """
    for number in itertools.count():
        drawn = hashlib.sha256(f"hold {seed} {number}".encode()).digest()
        cpu, until = drawn[2] % (2 * cpus), drawn[4] % (2 * points)
        yield Hold(
            pause=_PAUSES[drawn[0] % len(_PAUSES)] if number else 0,
            point=drawn[1] % points,
            cpu=cpu if cpu < cpus else None,
            passes=_PASSES[drawn[3] % len(_PASSES)],
            until=until if until < points else None,
            milliseconds=_MILLISECONDS[drawn[5] % len(_MILLISECONDS)],
            lag=_LAGS[drawn[6] % len(_LAGS)],
        )
