"""What `vmdebug hunt` prints at its end: the groups of failures, the rate, and what to do next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

import typer

from vmdebug.cli import render

if TYPE_CHECKING:
    from vmdebug.hunting.hunt import Found, Recorded, Repeats
    from vmdebug.hunting.outcome import Group, Job, Outcome
    from vmdebug.hunting.schedule import Schedule

SHOWN = 20
"""How many seeds of a group, and how many holds of a run, are printed."""

_SEVERAL = "Several CPUs run at the host's speed: a seed gives the same holds, and not the same run."


class Closer(NamedTuple):
    """What was found out about the first failure.

    Args:
        simplest: The simplest schedule that fails.
        repeats: How often its seed fails again, of a guest with several CPUs.
        recorded: Its recording.
    """

    simplest: Schedule | None = None
    repeats: Repeats | None = None
    recorded: Recorded | None = None


def finish(found: Found, closer: Closer, job: Job, *, again: str, as_json: bool) -> None:
    """Print the groups, the rate and what to do next; exit with status 1 if a run failed."""
    if as_json:
        render.put_json(_facts(found, closer, job))
    else:
        for group in found.groups:
            _show(group, job)
        per_minute = 60 * found.runs / found.seconds if found.seconds else 0.0
        render.put(
            f"{found.failed} of {found.runs} runs failed: {found.rate}; {per_minute:.0f} runs a minute"
        )
        if found.groups:
            seed = found.groups[0].outcomes[0].schedule.seed
            render.tell(f"\nrepeat it:\n  {again} --seed {seed}")
        if closer.repeats is not None:
            render.tell(f"its seed failed again in {closer.repeats}.\n{_SEVERAL}")
        if closer.simplest is not None:
            render.tell(f"the simplest schedule that fails:\n  {again} --schedule {closer.simplest}")
        if closer.recorded is not None:
            _tell_recorded(closer.recorded)
    if found.failed:
        raise typer.Exit(1)


def _tell_recorded(recorded: Recorded) -> None:
    if recorded.directory is None:
        render.tell(f"there is no recording of the failure: {recorded.reason}")
        return
    words = shlex.join(["vmdebug", "replay", str(recorded.directory), "--to", "failure"])
    render.tell(f"the run of seed {recorded.schedule.seed} is recorded; go to its failure:\n  {words}")


def _show(group: Group, job: Job) -> None:
    first = group.outcomes[0]
    seeds = ", ".join(str(each.schedule.seed) for each in group.outcomes[:SHOWN])
    more = ", …" if len(group.outcomes) > SHOWN else ""
    render.put(f"\n--- {len(group.outcomes)} times: {first.headline} (seeds {seeds}{more}) ---")
    render.put(_decoded(first, job))
    if first.holds:
        render.put(f"holds in the run of seed {first.schedule.seed}:")
        for each in first.holds[-SHOWN:]:
            render.put(f"  {each}")


def _decoded(outcome: Outcome, job: Job) -> str:
    from vmdebug import postmortem, sources
    from vmdebug.deadline import BUILD_SECONDS, Deadline
    from vmdebug.progress import silent

    if not outcome.troubles:
        return outcome.text
    kernel = sources.resolve(job.options, report=silent, deadline=Deadline.after(BUILD_SECONDS)).kernel
    more = len(outcome.troubles) - 1
    rest = f"\n({more} more splats followed in this run)" if more else ""
    return "\n\n".join(section.text for section in postmortem.splats(outcome.troubles[:1], kernel)) + rest


def _facts(found: Found, closer: Closer, job: Job) -> dict[str, object]:
    simplest, repeats, recorded = closer
    return {
        "runs": found.runs,
        "failed": found.failed,
        "rate": found.rate.rate,
        "interval": [found.rate.low, found.rate.high],
        "seconds": found.seconds,
        "repeats": None if repeats is None else {"runs": repeats.runs, "failed": repeats.failed},
        "simplest": None if simplest is None else str(simplest),
        "recording": None if recorded is None or recorded.directory is None else str(recorded.directory),
        "not_recorded": "" if recorded is None else recorded.reason,
        "groups": [
            {
                "group": group.name,
                "kind": group.outcomes[0].kind,
                "headline": group.outcomes[0].headline,
                "seeds": [each.schedule.seed for each in group.outcomes],
                "schedule": str(group.outcomes[0].schedule),
                "text": _decoded(group.outcomes[0], job),
                "holds": list(group.outcomes[0].holds),
            }
            for group in found.groups
        ],
    }
