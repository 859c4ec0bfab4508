"""Use vmdebug on a machine with faults: full disks, I/O errors, few descriptors, a jumping clock, load.

Needs its own mount namespace, which `soak.run` makes, because it mounts a file system in order to fill it.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from soak.result import Result, Rounds
from soak.world import HUNG, VMDEBUG, Ended, World, aftermath, world
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError

SOURCE = Path(__file__).with_name("faults.c")
BUSY = 20
"""How many endless loops run as load."""

VERB_SECONDS = 240.0
"""How long a verb may take under a fault; a longer one counts as a hang."""

STATUSES = frozenset(range(6))
"""The exit statuses that a verb may have."""

DESCRIPTORS = (12, 80)
"""The range of the limit of open files, for the fault "no descriptors"."""

ONE_IN = (3, 60)
"""The range of N, where one in N calls fails."""

FAULTS = ("full disk", "full file system", "I/O errors", "no descriptors", "clock", "load")
"""With "full disk", random calls fail with ENOSPC; with "full file system", the file system is full."""

SIZE = "512m"
"""The size of the world's file system."""

LEFT = (0, 4096, 64 << 10, 1 << 20)
"""How many bytes a full file system has left."""

VERBS = (
    ("start", "builtin", "--name", "s"),
    ("exec", "s", "--", "echo hello"),
    ("attach", "s", "--batch", "-ex", "bt"),
    ("snapshot", "save", "s", "one"),
    ("dmesg", "s"),
    ("status", "--json"),
    ("restart", "s"),
    ("stop", "s"),
)


def run(count: int, rng: random.Random) -> Result:
    """Run `count` verbs, each under a random fault."""
    rounds = Rounds("faults")
    with world(SIZE) as here:
        library = _library(here.root)
        for number in range(count):
            fault = rng.choice(FAULTS)
            verbs = VERBS[: 1 + rng.randrange(len(VERBS))]
            problems = _under(here, fault, verbs, library, rng)
            rounds.add(fault, f"{number}, {fault}", problems)
            if problems:
                here.end()
    return rounds.result()


def _under(
    here: World, fault: str, verbs: tuple[tuple[str, ...], ...], library: Path, rng: random.Random
) -> list[str]:
    """Run some verbs without a fault and the last one with it; return what went wrong."""
    for verb in verbs[:-1]:
        if (ended := here.run(*verb)).status:
            return [f"`{' '.join(verb)}` without a fault ended with {ended.status}: {ended.output[-300:]}"]
    words = " ".join(verbs[-1])
    with contextlib.ExitStack() as held:
        if fault == "load":
            held.enter_context(_load())
        if fault == "full file system":
            held.enter_context(here.full(rng.choice(LEFT)))
        ended = _faulty(here, fault, verbs[-1], library, rng)
    problems = []
    if ended.status == HUNG:
        problems.append(f"`{words}` hung: {ended.output[-300:]}")
    elif ended.traceback:
        problems.append(f"`{words}` showed a traceback: {ended.output[-900:]}")
    elif ended.status not in STATUSES:
        problems.append(f"`{words}` ended with {ended.status}: {ended.output[-300:]}")
    return problems + aftermath(here)


def _faulty(here: World, fault: str, verb: tuple[str, ...], library: Path, rng: random.Random) -> Ended:
    program: list[str | Path] = [VMDEBUG, *verb]
    env = dict(here.env)
    match fault:
        case "no descriptors":
            program = ["prlimit", f"--nofile={rng.randint(*DESCRIPTORS)}", *program]
        case "full disk" | "I/O errors":
            number = errno.ENOSPC if fault == "full disk" else errno.EIO
            env |= _shim(
                library, SOAK_ERRNO=number, SOAK_ONE_IN=rng.randint(*ONE_IN), SOAK_SEED=rng.getrandbits(30)
            )
            env["SOAK_ROOT"] = str(here.root)
        case "clock":
            env |= _shim(library, SOAK_CLOCK=1, SOAK_SEED=rng.getrandbits(30))
    try:
        done = process.run(program, env=env, deadline=Deadline.after(VERB_SECONDS), check=False)
    except DeadlineError as error:
        return Ended(HUNG, error.detail)
    return Ended(done.status, done.stdout + done.stderr)


def _shim(library: Path, **numbers: int) -> Mapping[str, str]:
    return {"LD_PRELOAD": str(library), **{name: str(number) for name, number in numbers.items()}}


def _library(directory: Path) -> Path:
    library = directory / "faults.so"
    argv: list[str | Path] = ["cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, SOURCE, "-ldl"]
    process.run(argv, deadline=Deadline.after(60))
    return library


@contextlib.contextmanager
def _load() -> Iterator[None]:
    with contextlib.ExitStack() as busy:
        for _ in range(BUSY):
            busy.enter_context(process.spawn(["sh", "-c", "while :; do :; done"]))
        yield
