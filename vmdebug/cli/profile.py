"""`vmdebug profile`: samples what a guest's CPUs execute; and compares two profiles."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vmdebug.cli import options, render, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from vmdebug.profiling import By
    from vmdebug.session import DebugSession
    from vmdebug.trace.profile.profile import Profile


class WithCommand(verb.WithTail):
    """`profile`, whose command in the guest follows `--`."""

    tail_metavar = "CMD [ARGS]"


WAIT_SECONDS = 0.1
"""How often it is looked whether the profile is to end."""

app = verb.new_app()

Seconds = Annotated[float | None, typer.Option(metavar="S", min=0, help="End after S seconds.")]
FormName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="text|html|svg|speedscope|firefox|pprof|folded|json",
        help="Output format; by default that of the name of FILE, and text for standard output.",
    ),
]
Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the profile to FILE.")
]
Collector = Annotated[
    str,
    typer.Option(
        metavar="auto|plugin|guest",
        help="Who samples: a plugin in QEMU, by instructions, or the guest's kernel, by time. auto: the"
        " plugin if it is loaded.",
    ),
]
Rate = Annotated[
    int | None,
    typer.Option(
        metavar="HZ",
        min=1,
        max=50_000,
        help="The guest's kernel: samples of each CPU a second; 997 by default.",
    ),
]
Period = Annotated[
    int, typer.Option(metavar="N", help="The plugin: instructions of a CPU between two samples.")
]
Event = Annotated[
    str,
    typer.Option(
        metavar="auto|cycles|cpu-clock", help="What the guest's kernel samples by; auto: cycles if it can."
    ),
]
Idle = Annotated[bool, typer.Option("--idle", help="Sample idle CPUs, too.")]
Inlined = Annotated[
    bool, typer.Option("--inlined", help="Name inlined functions of the kernel, too; takes longer.")
]
Diff = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="A B", help="Take no profile; compare two, written with `-o FILE.json`."),
]


@app.command(
    cls=WithCommand,
    epilog=verb.examples(
        "vmdebug profile -o dd.html -- dd if=/dev/zero of=/dev/null bs=1 count=500000",
        "vmdebug profile base-nixos --seconds 10",
        "vmdebug profile --by guest --rate 4999 --seconds 10",
        "vmdebug profile --seconds 5 -o before.json",
        "vmdebug profile --diff before.json after.json -o change.html",
    ),
)
def profile(
    context: typer.Context,
    name: verb.VmName = None,
    *,
    seconds: Seconds = None,
    form: FormName = None,
    output: Output = None,
    by: Collector = "auto",
    period: Period = 1_000_003,
    rate: Rate = None,
    event: Event = "auto",
    idle: Idle = False,
    inlined: Inlined = False,
    diff: Diff = None,
    force: options.Force = False,
) -> None:
    """Sample what a guest's CPUs execute, with stacks of the kernel and of user space.

    Samples all CPUs until CMD ends in the guest, S seconds have passed, or Ctrl-C: by a plugin in QEMU (TCG,
    QEMU 9.2 or newer), or by perf events of the guest's kernel. Exits with CMD's status. CMD's output goes to
    standard output if FILE gets the profile, and otherwise to standard error.
    """
    words = verb.tail(context)
    from vmdebug.trace.profile import writing

    chosen = writing.format_of(form, output, two=diff is not None)
    if diff is not None:
        if name is not None or words or seconds is not None:
            raise UsageError("--diff takes no profile", hint="leave out NAME, --seconds and the command")
        _compare(diff, chosen, output)
        return
    _check_output(chosen, output)
    from vmdebug import session

    with session.attach(name, force=force) as attached:
        attached.vm.check_alive("profile")
        with render.step(render.SYMBOLS):
            taken = attached.profile(
                by=cast("By", by), period=period, rate=rate, event=event, idle=idle, inlined=inlined
            )
        status = 0
        from vmdebug.cli.trace import interrupts

        with interrupts() as over, taken:
            if words:
                status = _command(attached, words, over, seconds, to_stdout=output is not None)
            else:
                render.tell("sampling; Ctrl-C ends it" if seconds is None else f"sampling for {seconds:g} s")
                over.wait(seconds)
    for note in taken.profile.notes:
        render.tell(f"note: {note}")
    _put(taken.profile, chosen, output)
    if status:
        raise typer.Exit(status)


def _check_output(chosen: str, output: str | None) -> None:
    """Raise a VmdebugError if a binary format would go to a terminal, or the file cannot be written."""
    from vmdebug.trace.profile import writing

    if output is not None:
        writing.check(output)
    if chosen == "pprof" and output is None and sys.stdout.isatty():
        raise UsageError(
            "the format pprof is binary, and the output is a terminal",
            hint="write it to a file: -o FILE.pb.gz",
        )


def _command(
    attached: DebugSession,
    words: Sequence[str],
    over: threading.Event,
    seconds: float | None,
    *,
    to_stdout: bool,
) -> int:
    """Run a command until it ends, the seconds have passed or the event is set; return its status."""
    import threading

    from vmdebug.channel.shell import Streams
    from vmdebug.deadline import LAUNCH_SECONDS, Deadline
    from vmdebug.errors import DeadlineError

    limit = Deadline.after(threading.TIMEOUT_MAX if seconds is None else seconds)
    streams = Streams(stdout=render.put_bytes if to_stdout else render.tell_bytes, stderr=render.tell_bytes)
    command = words[0] if len(words) == 1 else words
    job = attached.vm.shell.begin(command, streams=streams, deadline=Deadline.after(LAUNCH_SECONDS))
    done: list[int] = []
    failed: list[Exception] = []

    def wait() -> None:
        try:
            done.append(job.result_by(limit).status)
        except DeadlineError:
            done.append(0)  # the profile's time is over, and so is the command
        except Exception as error:  # noqa: BLE001 - raised by the main thread
            failed.append(error)

    waiting = threading.Thread(target=wait, name="profiled command", daemon=True)
    waiting.start()
    while waiting.is_alive() and not over.is_set():
        waiting.join(WAIT_SECONDS)
    if waiting.is_alive():
        job.cancel()
    if failed:
        raise failed[0]
    return done[0] if done else 0


def _compare(files: tuple[str, str], chosen: str, output: str | None) -> None:
    from vmdebug.trace.profile.profile import Profile

    before, after = (Profile.load(each) for each in files)
    if before.unit != after.unit:
        render.tell(f"note: one profile counts {before.unit}, the other {after.unit}: shares are compared")
    _put(after, chosen, output, before)


def _put(profile: Profile, chosen: str, output: str | None, before: Profile | None = None) -> None:
    from vmdebug.trace.profile import writing

    data = writing.rendered(profile, chosen, before)
    if output is None:
        render.put_bytes(data)
    else:
        writing.write(output, data)
        render.tell(f"wrote {output}, {len(profile)} samples")
