"""`vmdebug hunt`: runs a script under many schedules, until a race in the kernel shows."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import hunt_report, options, render, trouble, verb
from vmdebug.cli.hunt_report import Closer
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.guest_options import GuestOptions
    from vmdebug.hunting.hunt import Found, Limits, Pool
    from vmdebug.hunting.outcome import Job, Outcome
    from vmdebug.hunting.schedule import Schedule
    from vmdebug.progress import Report

DEFAULT_RUNS = 100


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
        "vmdebug hunt race.py --hold store_counter,race.c:26",
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
    cpus: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Number of CPUs, 1 by default. A run is not exact with more."),
    ] = None,
    hold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE[,PLACE…]",
            help="Hold one of 2 or more CPUs at these functions or FILE:LINEs while others run on.",
        ),
    ] = None,
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
        typer.Option(
            "--minimise/--no-minimise",
            help="Simplify the schedule of the first failure; with several CPUs, repeat its seed.",
        ),
    ] = True,
    record: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Where to record the first failure; by default in ~/.local/share/vmdebug."
        ),
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
    run: --seed repeats it, and the first failure is recorded for `vmdebug replay`. A function
    prepare(session) of the script runs once, before the guest is copied. The guest has one CPU and only runs
    during session.exec. A test of pytest gets the guest by its fixtures session and vm. Exits with status 1
    if a run failed.

    With --hold the guest has two CPUs that run at the same time: one that comes to one of the places is held
    there, for a time that the seed says, while the other runs on. The same seed then fails again at a rate,
    and the hunt says at which.
    """
    trouble.check_kinds(allow or ())
    if record is not None and no_record:
        raise UsageError("--record and --no-record exclude each other", hint="give only one of them")
    places = tuple(place for words in hold or () for place in words.split(",") if place)
    count = cpus or (2 if places else 1)
    if count > 1:
        _check_several(count, schedule=schedule, record=record)
    elif places:
        raise UsageError("--hold needs 2 CPUs, and the guest has 1", hint="leave out --cpus 1")
    one = _one(seed, schedule, None if count > 1 else runs, minutes, cpus=count)
    limits = _limits(one, runs, minutes, until_failure=until_failure, cpus=count)
    recording = record is not None or not (no_record or one is not None or count > 1)
    place = _place(script, record) if recording else None
    wanted = options.given(guest, module=module, append=append, memory=memory)
    from vmdebug.hunting import hunt as hunting

    with render.progress() as report:
        job = _job(
            script,
            wanted,
            arguments=verb.tail(context),
            allow=tuple(allow or ()),
            timeout=timeout,
            cpus=count,
            hold=places,
            report=report,
        )
        once = one is not None and count == 1
        workers = 1 if once else jobs or max(1, len(os.sched_getaffinity(0)) // count)
        with hunting.opened(job, on=on, workers=workers) as pool:
            found = hunting.hunt(
                pool,
                itertools.repeat(one) if one is not None else hunting.seeds(first_seed, cpus=count),
                limits,
                ended=lambda outcome: _tell(outcome, quiet=as_json),
                report=report,
            )
            closer = _looked_at(pool, job, found, place, report, minimise=minimise and one is None)
    again = _again(
        script,
        guest=[guest],
        append=[append],
        memory=[memory],
        module=module or [],
        cpus=[str(cpus)] if cpus else [],
        hold=hold or [],
    )
    hunt_report.finish(found, closer, job, again=again, as_json=as_json)


def _check_several(count: int, *, schedule: str | None, record: str | None) -> None:
    """Refuse what a guest with several CPUs cannot have.

    Raises:
        UsageError: an option is for one CPU.
    """
    for name, value in (("--schedule", schedule), ("--record", record)):
        if value is not None:
            raise UsageError(
                f"{name} needs a guest with one CPU, whose instructions are counted, and it has {count}",
                hint=f"leave out {name}, or --hold and --cpus",
            )


def _one(
    seed: int | None, schedule: str | None, runs: int | None, minutes: float | None, *, cpus: int
) -> Schedule | None:
    """Return the schedule that is to be repeated; None: a hunt.

    Raises:
        UsageError: the schedule is none, or an option contradicts it.
    """
    from vmdebug.hunting import hunt as hunting
    from vmdebug.hunting import schedule as schedules

    said = {"--seed": seed, "--schedule": schedule, "--runs": runs, "--minutes": minutes}
    given = [name for name, value in said.items() if value is not None]
    if len(given) > 1 and ("--seed" in given or "--schedule" in given):
        raise UsageError(f"{given[0]} and {given[1]} exclude each other", hint="give only one of them")
    if seed is not None:
        return hunting.of_seed(seed, cpus=cpus)
    return None if schedule is None else schedules.parse(schedule)


def _limits(
    one: Schedule | None, runs: int | None, minutes: float | None, *, until_failure: bool, cpus: int
) -> Limits:
    from vmdebug.hunting.hunt import REPEATS, Limits

    if one is not None:
        return Limits(runs=1 if cpus == 1 else runs or REPEATS)
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
    cpus: int,
    hold: tuple[str, ...],
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
    from vmdebug.hunting.held_guest import with_cpus
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
    if cpus == 1:
        scheduled(spec, BOOT)
    else:
        with_cpus(spec, cpus)
    try:
        job = Job(
            options=spec.asked or wanted,
            script=str(script.resolve()),
            text=script.read_text(),
            test=f"{script.resolve()}::{test}" if test else "",
            arguments=arguments,
            allow=allow,
            timeout=timeout,
            cpus=cpus,
            hold=hold,
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


def _place(script: Path, words: str | None) -> Path:
    """Return the directory of the recording.

    Raises:
        UsageError: there is something at that path.
    """
    from vmdebug.recording import store

    return store.place(words or "", script.name.partition("::")[0].removesuffix(".py"))


def _looked_at(
    pool: Pool, job: Job, found: Found, place: Path | None, report: Report, *, minimise: bool
) -> Closer:
    """Return what is found out about the first failure."""
    from vmdebug.hunting import hunt as hunting

    if not found.groups:
        return Closer()
    first, exact = found.groups[0].outcomes[0], job.cpus == 1
    return Closer(
        simplest=hunting.minimise(pool, first, report=report) if minimise and exact else None,
        repeats=hunting.repeat(pool, first, report=report) if minimise and not exact else None,
        recorded=None if place is None else hunting.record(pool, job, found.groups[0], place, report=report),
    )
