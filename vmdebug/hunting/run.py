"""One run of a hunt: the script's `main(session)` under a schedule, and what came of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from vmdebug import sources
from vmdebug.channel.log.trouble import Trouble
from vmdebug.deadline import BUILD_SECONDS, Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, UsageError
from vmdebug.hunting import outcome, pytest_test
from vmdebug.hunting.guest import HuntedGuest
from vmdebug.hunting.held_guest import HeldGuest
from vmdebug.hunting.hunted_session import HuntedSession, NotInHuntError
from vmdebug.hunting.mailbox import Piece
from vmdebug.hunting.outcome import Job, Outcome
from vmdebug.hunting.schedule import Schedule
from vmdebug.progress import silent
from vmdebug.recording import ending
from vmdebug.session import DebugSession
from vmdebug.spelling import option
from vmdebug.vm.kernel_trouble import NewTrouble


class Script:
    """A script: its `main`, and its `prepare` if it has one.

    Args:
        job: The job.

    Raises:
        UsageError: it has no `main`, or its `main` does not take the arguments.
    """

    def __init__(self, job: Job) -> None:
        self.prepare: Callable[[DebugSession], object] | None = None
        self._arguments = list(job.arguments)
        if job.test:
            self._main: Callable[..., object] = functools.partial(pytest_test.run, job.test)
            return
        directory = str(Path(job.script).parent)
        if directory not in sys.path:
            sys.path.insert(0, directory)  # as with `python SCRIPT`
        names: dict[str, Any] = {"__name__": "vmdebug_script", "__file__": job.script}
        exec(compile(job.text, job.script, "exec"), names)  # noqa: S102 - the user's script
        self.prepare = names.get("prepare")
        main = names.get("main")
        if not callable(main):
            raise UsageError(f"{job.script} has no main", hint="define it: def main(session): …")
        self._main = main
        if self._arguments and not _takes(main, 2):
            raise UsageError(
                f"{job.script}: its main takes no arguments", hint="define it: def main(session, args): …"
            )

    def main(self, session: DebugSession) -> None:
        """Call `main`."""
        if _takes(self._main, 2):
            self._main(session, self._arguments)
        else:
            self._main(session)


class Runner:
    """Runs a job under schedules; a context manager, which keeps the saved guest.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._held = contextlib.ExitStack()
        self._script = Script(job)
        self._guest: HuntedGuest | HeldGuest | None = None

    def __enter__(self) -> Self:
        job, prepare = self._job, self._script.prepare
        spec = sources.resolve(job.options, report=silent, deadline=Deadline.after(BUILD_SECONDS))
        if job.cpus == 1:
            self._guest = self._held.enter_context(HuntedGuest(spec, prepare))
        else:
            held = HeldGuest(spec, cpus=job.cpus, points=job.hold, prepare=prepare)
            self._guest = self._held.enter_context(held)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def run(self, schedule: Schedule) -> Outcome:
        """Run the job once.

        Raises:
            VmdebugError: the guest cannot be started, or the script uses what a hunt cannot give; a failure
                of the script is an outcome.
        """
        assert self._guest is not None  # noqa: S101 - entered
        return self._run(schedule, self._guest.session(schedule))[0]

    def record(self, schedule: Schedule, directory: Path) -> Outcome:
        """Run the job once to see what the guest is given, and once more under record.

        Args:
            schedule: The schedule.
            directory: The recording; it is deleted unless both runs fail in the same way.

        Returns:
            The outcome of the recorded run; of the first run, if that passed.

        Raises:
            VmdebugError: see `run`; or the guest cannot be recorded.
        """
        if not isinstance(self._guest, HuntedGuest):
            raise UsageError(
                "a guest with several CPUs cannot be recorded", hint=f"leave out {option('record')}"
            )
        first, given = self._run(schedule, self._guest.session(schedule))
        if not first.failed:
            return first
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            again, _ = self._run(schedule, self._guest.recorded(schedule, given, directory))
            if again.group == first.group:
                ending.settle(directory)
                undo.pop_all()
        return again

    def _run(
        self, schedule: Schedule, under: AbstractContextManager[HuntedSession]
    ) -> tuple[Outcome, Sequence[Piece]]:
        """Run the job in a session, and return the outcome and what the guest was given."""
        began = time.monotonic()
        with under as session, NewTrouble(session.vm) as new:
            failure = self._call(session)
            troubles = [each for each in new.take() if each.kind not in self._job.allow]
            given = session.given
        found = self._outcome(schedule, failure, troubles, round(time.monotonic() - began, 3))
        return msgspec.structs.replace(found, holds=tuple(session.holds)), given

    def _outcome(
        self,
        schedule: Schedule,
        failure: tuple[str, str, str] | None,
        troubles: Sequence[Trouble],
        seconds: float,
    ) -> Outcome:
        if troubles:
            return outcome.of_trouble(schedule, troubles, seconds)
        if failure is None:
            return Outcome(schedule=schedule, seconds=seconds)
        kind, headline, text = failure
        return Outcome(
            schedule=schedule,
            kind=kind,
            headline=headline,
            text=text,
            group=outcome.same(kind, headline),
            seconds=seconds,
        )

    def _call(self, session: DebugSession) -> tuple[str, str, str] | None:
        """Call the script, and return kind, headline and traceback of its failure."""
        try:
            with limited(session, self._job.timeout):
                self._script.main(session)
        except NotInHuntError as error:
            error.detail = error.detail or self._traceback(error)
            raise
        except Exception as error:  # noqa: BLE001 - any error of the script is the failure that is hunted
            match error:
                case DeadlineError():
                    kind = "timeout"
                case GuestDiedError():
                    kind = "died"
                case _:
                    kind = "error"
            first = (str(error).splitlines() or [""])[0]
            return kind, f"{type(error).__name__}: {first}", self._traceback(error)
        return None

    def _traceback(self, error: Exception) -> str:
        """Return the traceback from the script on."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != self._job.script:
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


@contextlib.contextmanager
def limited(session: DebugSession, seconds: float) -> Iterator[None]:
    """Limit each command of the block to the time that remains of so many seconds."""
    deadline = Deadline.after(seconds)
    shell = session.vm.shell
    usual = shell.run

    def run(*words: Any, **keywords: Any) -> Any:
        return usual(*words, **{**keywords, "deadline": keywords["deadline"].at_most(deadline.remaining)})

    shell.run = run  # type: ignore[method-assign] # for this session only
    yield


def _takes(function: Callable[..., object], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True
