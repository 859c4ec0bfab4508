"""What a run of a hunt came to, and which failures are the same; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from vmdebug import guest
from vmdebug.channel.log.trouble import Trouble
from vmdebug.guest_options import GuestOptions
from vmdebug.hunting.schedule import Schedule


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a hunt runs again and again; a worker gets it as JSON.

    Args:
        options: The guest, with absolute paths.
        script: The path of the script, for tracebacks.
        text: The script itself, so that a worker on another machine needs no copy.
        test: The id of a test of pytest, FILE::NAME; "": the script has a `main`.
        arguments: For its `main`.
        allow: Kinds of kernel trouble that are no failure.
        timeout: Seconds that a run may take.
        cpus: How many CPUs the guest has; with more than 1 no instructions are counted.
        hold: Where its CPUs are held.
    """

    options: GuestOptions
    script: str
    text: str
    test: str = ""
    arguments: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    timeout: float = 120.0
    cpus: int = 1
    hold: tuple[str, ...] = ()


def line_of(job: Job) -> bytes:
    """Return a job as one line of JSON."""
    return guest.encode(job).replace(b"\n", b" ") + b"\n"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to.

    Args:
        schedule: The schedule.
        kind: A kind of kernel trouble; "error": the script raised; "died"; "timeout"; "": the run passed.
        headline: The first line of the failure.
        text: All of it, as printed in the guest, or the traceback.
        group: Failures with the same group are the same.
        seconds: How long the run took on the host.
        troubles: The trouble of the kernel.
        holds: The holds of the guest's CPUs, in words.
    """

    schedule: Schedule
    kind: str = ""
    headline: str = ""
    text: str = ""
    group: str = ""
    seconds: float = 0.0
    troubles: tuple[Trouble, ...] = ()
    holds: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the run failed."""
        return bool(self.kind)


_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\b\d+\b", re.IGNORECASE)
_FRAME = re.compile(r"^\s*(?!\? )([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+", re.ASCII)
_STAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[[^\]]*\])? ?")
_FRAMES = 4
"""How many functions of a trace tell failures apart."""


def same(kind: str, headline: str, text: str = "") -> str:
    """Return what failures of one cause share: kind, headline without numbers, innermost functions."""
    lines = (_STAMP.sub("", line) for line in text.splitlines())
    frames = [found[1] for line in lines if (found := _FRAME.match(line))][:_FRAMES]
    return " < ".join((f"{kind}: {_NUMBER.sub('N', headline)}", *frames))


def of_trouble(schedule: Schedule, troubles: Iterable[Trouble], seconds: float) -> Outcome:
    """Return the outcome of a run with kernel trouble; the first trouble is the cause."""
    found = tuple(troubles)
    first = found[0]
    return Outcome(
        schedule=schedule,
        kind=first.kind,
        headline=first.headline,
        text="\n\n".join(each.text for each in found),
        group=same(first.kind, first.headline, first.text),
        seconds=seconds,
        troubles=found,
    )


class Group(msgspec.Struct, kw_only=True):
    """Failures of one cause.

    Args:
        name: See `Outcome.group`.
        outcomes: The failed runs, in the order of their ends.
    """

    name: str
    outcomes: list[Outcome]


def grouped(outcomes: Iterable[Outcome]) -> list[Group]:
    """Return the failures by cause, the most frequent first."""
    found: dict[str, Group] = {}
    for each in outcomes:
        if each.failed:
            found.setdefault(each.group, Group(name=each.group, outcomes=[])).outcomes.append(each)
    return sorted(found.values(), key=lambda group: -len(group.outcomes))
