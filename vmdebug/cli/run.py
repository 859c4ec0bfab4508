"""`vmdebug run`: calls a script's `main(session)` on a guest."""

from __future__ import annotations

import contextlib
import inspect
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug import spelling
from vmdebug.cli import options, render, restart, trouble, verb
from vmdebug.errors import DeadlineError, HostError, LaunchError, MismatchError, UsageError, VmdebugError

if TYPE_CHECKING:
    from vmdebug.guest_options import StartOptions
    from vmdebug.session import DebugSession

BISECT_SKIP = 125
"""Exit status with which `git bisect run` skips a commit; see git-bisect(1)."""


class Run(verb.WithTail):
    """`run`: the words after `--` are for the script."""

    tail_metavar = "ARGS"


app = verb.new_app()


@app.command(
    cls=Run,
    epilog=verb.examples(
        "vmdebug run examples/open_args.py --guest builtin",
        "vmdebug run check.py --name base-nixos --timeout 60 -- --verbose",
        "git bisect run vmdebug run --bisect --build --guest . check.py",
    ),
)
def run(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="Python file that defines main(session).")],
    *,
    guest: Annotated[
        str | None,
        typer.Option(
            metavar="G",
            help="Start this guest for the script, as `start` does.",
            autocompletion=verb.complete_guest,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="N", help="Use this running VM.", autocompletion=verb.complete_vm),
    ] = None,
    build: restart.Build = False,
    jobs: restart.Jobs = None,
    halt: options.Halt = None,
    force: options.Force = False,
    allow: options.AllowTrouble = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="Exit with status 5 after S seconds.")
    ] = None,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect", help="Exit with status 125 if the commit cannot be tested, for `git bisect run`."
        ),
    ] = False,
) -> None:
    """Run a Python script on a guest.

    Calls the script's main(session), or main(session, args) with `-- ARGS`. Without --guest and --name
    the guest is vmdebug.toml's default, else `builtin`. A guest that was started for the script ends with
    it. Exits with status 1 if the script raises, or with the status of vmdebug's error. Kernel trouble
    (a WARN, a panic, …) during the script, or during the boot of its guest, is printed; the status is
    then 1, unless --allow names its kind.
    """
    trouble.check_kinds(allow or ())
    if guest is not None and name is not None:
        raise UsageError(
            "--guest and --name exclude each other", hint="--guest starts a VM, --name takes a running one"
        )
    if build and name is not None:
        raise UsageError(
            "--build and --name exclude each other",
            hint=f"build and restart it: vmdebug restart {name} --build",
        )
    arguments = list(verb.tail(context))
    try:
        if build:
            _build(guest, jobs, bisect=bisect)
        opening = _session(guest, name, halt, force=force, settle=bisect)
        watch = partial(trouble.TroubleWatch, boot=name is None, allow=allow or ())
        status = _run(script, opening, arguments, timeout, watch)
    except CANNOT_JUDGE as error:
        if not bisect:
            raise
        render.error(error)
        status = BISECT_SKIP
    if bisect and status in (HostError.exit_status, MismatchError.exit_status):
        status = BISECT_SKIP
    raise typer.Exit(status)


class NotBuiltError(VmdebugError):
    """The kernel was not built, so the commit cannot be tested."""


class NeverBootedError(VmdebugError):
    """The guest's shell did not answer, so the commit cannot be tested."""


CANNOT_JUDGE = (HostError, MismatchError, LaunchError, NotBuiltError, NeverBootedError)
"""Errors after which the commit cannot be tested."""


def _build(guest: str | None, jobs: int | None, *, bisect: bool) -> None:
    """Run make in the tree of a guest.

    Raises:
        VmdebugError: make failed, or a boot needs another value of a new option; a NotBuiltError if `bisect`.
    """
    wanted = options.given(guest)
    try:
        with render.progress() as report:
            restart.make(wanted, jobs, report)
    except VmdebugError as error:
        if not bisect:
            raise
        raise NotBuiltError(error.message, hint=error.hint, detail=error.detail) from error


@contextlib.contextmanager
def _session(
    guest: str | None, name: str | None, halt: bool | None, *, force: bool, settle: bool
) -> Iterator[DebugSession]:
    """Open the session of the script.

    Args:
        guest: The guest to start, unless there is a `name`.
        name: A running VM.
        halt: Whether to stop at the reset vector; None leaves it to vmdebug.toml.
        force: Whether to continue with symbols of another kernel.
        settle: Whether to wait for the guest's shell, unless it is halted.
    """
    from vmdebug import session as sessions

    if name is not None:
        with sessions.attach(name, force=force) as attached:
            yield attached
        return
    said: StartOptions = {"force": True} if force else {}
    if halt is not None:
        said["halt"] = halt
    with render.progress() as report:
        started = sessions.start(guest, report=report, **said)
    with started:
        if settle and started.status == "running":
            _wait_for_shell(started)
        yield started


def _wait_for_shell(session: DebugSession) -> None:
    from vmdebug.deadline import BOOT_SECONDS, Deadline

    try:
        session.vm.shell.wait(Deadline.after(BOOT_SECONDS))
    except VmdebugError as error:
        raise NeverBootedError(
            f"the guest never booted: {error.message}", hint=error.hint, detail=error.detail
        ) from error


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise DeadlineError in the block after so many seconds."""
    if not seconds:
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise DeadlineError(f"waited {seconds:g} s for the script to end")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run(
    script: Path,
    opening: AbstractContextManager[DebugSession],
    arguments: list[str],
    timeout: float | None,
    watch: Callable[[DebugSession], trouble.TroubleWatch],
) -> int:
    """Run the script and return the exit status.

    Args:
        script: The script; loaded before the session is opened, so that a mistake in it costs no boot.
        opening: Opens the session.
        arguments: For the script.
        timeout: Seconds for the script itself.
        watch: Makes the watch for kernel trouble.
    """
    try:
        with spelling.spelled(spelling.python):
            main = _main_of(script, with_arguments=bool(arguments))
    except Exception as error:
        if isinstance(error, UsageError) and _below(script, error) is None:
            raise
        return _failed(script, error)
    with opening as session, watch(session) as watching:
        status = _call(script, main, session, arguments, timeout)
        refused = watching.error()
        if refused is not None:
            render.error(refused)
            status = status or refused.exit_status
    return status


def _call(
    script: Path,
    main: Callable[..., object],
    session: DebugSession,
    arguments: list[str],
    timeout: float | None,
) -> int:
    """Call the script's `main`, print its error, and return the exit status."""
    try:
        with _alarm(timeout), spelling.spelled(spelling.python):
            if _takes(main, 2):
                main(session, arguments)
            else:
                main(session)
    except Exception as error:  # noqa: BLE001 - any error of the script is shown
        return _failed(script, error)
    finally:
        for note in session.notes:
            render.tell(f"note: {note}")
    return 0


def _failed(script: Path, error: Exception) -> int:
    """Print a script's error, and return its exit status."""
    render.tell(_own_traceback(script, error))
    if not isinstance(error, VmdebugError):
        return VmdebugError.exit_status
    render.error(error)
    return error.exit_status


def _main_of(script: Path, *, with_arguments: bool) -> Callable[..., object]:
    if not script.is_file():
        raise UsageError(f"there is no script {script}", hint="give a Python file that defines main(session)")
    # As with `python SCRIPT`: it can import modules beside it.
    sys.path.insert(0, str(script.resolve().parent))
    main = runpy.run_path(str(script), run_name="vmdebug_script").get("main")
    if not callable(main):
        raise UsageError(f"{script} has no main", hint="define it: def main(session): …")
    if with_arguments and not _takes(main, 2):
        raise UsageError(
            f"{script}: its main takes no arguments", hint="define it: def main(session, args): …"
        )
    return main  # type: ignore[no-any-return] # callable() narrows to a callable of anything


def _takes(function: Callable[..., object], count: int) -> bool:
    """Whether a function can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def _below(script: Path, error: BaseException) -> TracebackType | None:
    """Return the part of a traceback that begins in the script; None if it has none."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(script):
        trace = trace.tb_next
    return trace


def _own_traceback(script: Path, error: Exception) -> str:
    """Return a traceback without the frames of vmdebug: from the script on."""
    if isinstance(error, VmdebugError):
        # The message is printed separately; frames inside vmdebug do not help the author.
        frames = traceback.extract_tb(_below(script, error))
        ours = str(Path(__file__).parent.parent)
        theirs = [frame for frame in frames if not frame.filename.startswith(ours)]
        return "Traceback (most recent call last):\n" + "".join(traceback.format_list(theirs)).rstrip()
    return "".join(traceback.format_exception(type(error), error, _below(script, error))).rstrip()
