"""`vmdebug hunt`: runs a script under many schedules, until a race in the kernel shows."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import options, render, trouble, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.guest_options import GuestOptions
    from vmdebug.hunting.hunt import Found, Limits, Pool, Recorded
    from vmdebug.hunting.outcome import Group, Job, Outcome
    from vmdebug.hunting.schedule import Schedule
    from vmdebug.progress import Report

DEFAULT_RUNS = 100

SHOWN = 20
"""How many seeds of a group are printed."""


class Hunt(verb.WithTail):
    """`hunt`: the words after `--` are for the script."""

    tail_metavar = "ARGS"


app = verb.new_app()


@app.command(
    cls=Hunt,
    epilog=verb.examples(
        "vmdebug hunt race.py --guest builtin --module race.ko",
        "vmdebug hunt race.py --until-failure",
        "vmdebug hunt tests/test_race.py::test_counter --guest builtin",
        "vmdebug hunt race.py --seed 17",
        "vmdebug hunt race.py --schedule seed=17,shift=6,gap=300,count=4",
        "vmdebug hunt race.py --minutes 30 --on dask://build:8786 --json",
    ),
)
def hunt(
    context: typer.Context,
    script: Annotated[
        Path,
        typer.Argument(
            metavar="SCRIPT|TEST",
            help="Python file that defines main(session), or a test of pytest, FILE::NAME.",
        ),
    ],
    *,
    guest: Annotated[
        str | None,
        typer.Option(metavar="G", help="The guest, as for `start`.", autocompletion=verb.complete_guest),
    ] = None,
    module: options.Module = None,
    append: options.Append = None,
    memory: options.Memory = None,
    runs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"End after N runs; {DEFAULT_RUNS} by default.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(metavar="M", min=0, help="End after M minutes.")] = None,
    until_failure: Annotated[
        bool, typer.Option("--until-failure", help="End at the first failure, however long it takes.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="S", min=0, max=(1 << 32) - 1, help="Repeat the run of this seed.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="KNOBS", help="Repeat the run of a schedule, as it was printed.")
    ] = None,
    first_seed: Annotated[
        int, typer.Option(metavar="S", min=0, max=(1 << 31), help="The first seed to try.")
    ] = 1,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="Runs at a time; by default one for each CPU."),
    ] = None,
    on: Annotated[
        str | None, typer.Option(metavar="dask://HOST:PORT", help="Run on a dask.distributed cluster.")
    ] = None,
    minimise: Annotated[
        bool,
        typer.Option("--minimise/--no-minimise", help="Simplify the schedule of the first failure."),
    ] = True,
    record: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to record the first failure.")
    ] = None,
    no_record: Annotated[bool, typer.Option("--no-record", help="Do not record the first failure.")] = False,
    allow: options.AllowTrouble = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=1, help="Seconds that one run may take.")
    ] = 120.0,
    as_json: verb.Json = False,
) -> None:
    """Run a script under many schedules, until a race in the kernel shows.

    Boots the guest once, and calls main(session) for each seed in a copy of it whose tasks run in another
    order: with a clock of another speed, and with one task after the other preferred at random. A run fails
    if the script raises, or the kernel has trouble (an oops, a WARN, …). The same seed always gives the same
    run: --seed repeats it. A function prepare(session) of the script runs once, before the guest is copied.
    The guest has one CPU and only runs during session.exec. A test of pytest gets the guest by its fixtures
    session and vm. Exits with status 1 if a run failed.
    """
    trouble.check_kinds(allow or ())
    if record is not None and no_record:
        raise UsageError("--record and --no-record exclude each other", hint="give only one of them")
    one = _one(seed, schedule, runs, minutes)
    limits = _limits(one, runs, minutes, until_failure=until_failure)
    place = _place(script, record) if record is not None or not (no_record or one is not None) else None
    wanted = options.given(guest, module=module, append=append, memory=memory)
    from vmdebug.hunting import hunt as hunting

    with render.progress() as report:
        job = _job(
            script,
            wanted,
            arguments=verb.tail(context),
            allow=tuple(allow or ()),
            timeout=timeout,
            report=report,
        )
        workers = 1 if one is not None else jobs or len(os.sched_getaffinity(0))
        with hunting.opened(job, on=on, workers=workers) as pool:
            found = hunting.hunt(
                pool,
                [one] if one is not None else hunting.seeds(first_seed),
                limits,
                ended=lambda outcome: _tell(outcome, quiet=as_json),
                report=report,
            )
            simplest = _simplest(pool, found, report) if minimise and one is None else None
            recorded = _recorded(pool, job, found, place, report)
    again = _again(script, guest=[guest], append=[append], memory=[memory], module=module or [])
    _finish(found, simplest, recorded, job, again=again, as_json=as_json)


def _one(seed: int | None, schedule: str | None, runs: int | None, minutes: float | None) -> Schedule | None:
    """Return the schedule that is to be repeated; None: a hunt.

    Raises:
        UsageError: the schedule is none, or an option contradicts it.
    """
    from vmdebug.hunting import schedule as schedules

    said = {"--seed": seed, "--schedule": schedule, "--runs": runs, "--minutes": minutes}
    given = [name for name, value in said.items() if value is not None]
    if len(given) > 1 and ("--seed" in given or "--schedule" in given):
        raise UsageError(f"{given[0]} and {given[1]} exclude each other", hint="give only one of them")
    if seed is not None:
        return schedules.of_seed(seed)
    return None if schedule is None else schedules.parse(schedule)


def _limits(one: Schedule | None, runs: int | None, minutes: float | None, *, until_failure: bool) -> Limits:
    from vmdebug.hunting.hunt import Limits

    if one is not None:
        return Limits(runs=1)
    return Limits(
        runs=runs or (None if minutes or until_failure else DEFAULT_RUNS),
        seconds=None if minutes is None else 60 * minutes,
        failures=1 if until_failure else None,
    )


def _again(script: Path, **said: Sequence[str | None]) -> str:
    """Return the command line that hunts with the same guest, for a person to add to."""
    words = [word for name, values in said.items() for each in values if each for word in (f"--{name}", each)]
    return shlex.join(["vmdebug", "hunt", str(script), *words])


def _job(
    script: Path,
    wanted: GuestOptions,
    *,
    arguments: tuple[str, ...],
    allow: tuple[str, ...],
    timeout: float,
    report: Report,
) -> Job:
    """Return the job; mistakes in the script or the guest show now, and not in each worker.

    Raises:
        UsageError: the script has no main, or the guest cannot be hunted.
        VmdebugError: the guest cannot be resolved.
    """
    from vmdebug import sources
    from vmdebug.deadline import BUILD_SECONDS, Deadline
    from vmdebug.hunting.guest import BOOT, scheduled
    from vmdebug.hunting.outcome import Job
    from vmdebug.hunting.run import Script

    file, _, test = str(script).partition("::")
    script = Path(file)
    if not script.is_file():
        raise UsageError(
            f"there is no script {script}",
            hint="give a Python file that defines main(session), or a test: FILE::NAME",
        )
    if test and arguments:
        raise UsageError("a test takes no arguments", hint=f"leave out {shlex.join(arguments)}")
    spec = sources.resolve(wanted, report=report, deadline=Deadline.after(BUILD_SECONDS))
    scheduled(spec, BOOT)
    try:
        job = Job(
            options=spec.asked or wanted,
            script=str(script.resolve()),
            text=script.read_text(),
            test=f"{script.resolve()}::{test}" if test else "",
            arguments=arguments,
            allow=allow,
            timeout=timeout,
        )
        Script(job)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{script} cannot be loaded: {type(error).__name__}: {error}", hint="correct it, and hunt again"
        ) from error
    return job


def _tell(outcome: Outcome, *, quiet: bool) -> None:
    if outcome.failed and not quiet:
        render.put(f"seed {outcome.schedule.seed:<6} {outcome.kind:<8} {outcome.headline}")
        render.flush()


def _simplest(pool: Pool, found: Found, report: Report) -> Schedule | None:
    from vmdebug.hunting import hunt as hunting

    if not found.groups:
        return None
    return hunting.minimise(pool, found.groups[0].outcomes[0], report=report)


def _place(script: Path, words: str | None) -> Path:
    """Return the directory of the recording.

    Raises:
        UsageError: there is something at that path.
    """
    from vmdebug.recording import store

    return store.place(words or "", script.name.partition("::")[0].removesuffix(".py"))


def _recorded(pool: Pool, job: Job, found: Found, place: Path | None, report: Report) -> Recorded | None:
    from vmdebug.hunting import hunt as hunting

    if not found.groups or place is None:
        return None
    return hunting.record(pool, job, found.groups[0], place, report=report)


def _finish(
    found: Found,
    simplest: Schedule | None,
    recorded: Recorded | None,
    job: Job,
    *,
    again: str,
    as_json: bool,
) -> None:
    """Print the groups, the rate and what to do next; exit with status 1 if a run failed."""
    if as_json:
        render.put_json(_facts(found, simplest, recorded, job))
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
        if simplest is not None:
            render.tell(f"the simplest schedule that fails:\n  {again} --schedule {simplest}")
        if recorded is not None:
            _tell_recorded(recorded)
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


def _facts(found: Found, simplest: Schedule | None, recorded: Recorded | None, job: Job) -> dict[str, object]:
    return {
        "runs": found.runs,
        "failed": found.failed,
        "rate": found.rate.rate,
        "interval": [found.rate.low, found.rate.high],
        "seconds": found.seconds,
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
            }
            for group in found.groups
        ],
    }
