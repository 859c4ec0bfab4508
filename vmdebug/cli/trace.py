"""`vmdebug trace`: prints calls of kernel functions, with arguments, while the guest runs."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vmdebug.cli import options, render, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.cli.trace_formats import Form, Summary
    from vmdebug.collecting import By
    from vmdebug.session import DebugSession
    from vmdebug.trace.hit import Hit
    from vmdebug.trace.probe import Overflow, Probe
    from vmdebug.trace.trace import Trace

FETCH_SECONDS = 0.1
"""How often hits are fetched and printed."""

app = verb.new_app()


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME] SYMBOL[:EXPR,…]…",
        help="The VM, if several run; the places, with the expressions to print: a function, a pattern of"
        " functions (`vfs_*`), FILE:LINE, FUNCTION+N for N lines below its start.",
    ),
]
When = Annotated[
    str,
    typer.Option(metavar="COND", help="Print only calls for which this is true, in the function's language."),
]
Count = Annotated[int | None, typer.Option(metavar="N", min=1, help="Stop after N hits.")]
Backtrace = Annotated[bool, typer.Option("--backtrace", help="Print backtraces.")]
Ret = Annotated[bool, typer.Option("--ret", help="Print return values.")]
CountOnly = Annotated[
    bool, typer.Option("--count-only", help="Print only the number of calls of each function.")
]
Collector = Annotated[
    str,
    typer.Option(
        metavar="auto|plugin|guest|gdb",
        help="Who collects: a plugin in QEMU or the guest's kernel, which do not stop the guest, or GDB."
        " auto: the first that can.",
    ),
]
OnFull = Annotated[
    str,
    typer.Option(
        metavar="block|drop",
        help="If hits come faster than they are printed: make the guest wait, which only the plugin can, or"
        " drop some.",
    ),
]
Recording = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Trace a replay of this recording, from its begin to its end: each time the same hits at the"
        " same times.",
    ),
]
Timeout = Annotated[float | None, typer.Option(metavar="S", min=0, help="Stop after S seconds.")]
Until = Annotated[str, typer.Option(metavar="COND", help="End with the first hit at which this is true.")]
OnHit = Annotated[
    str,
    typer.Option(
        metavar="print|stop",
        help="stop: stop the guest at the first hit, and continue in GDB there. GDB watches for it.",
    ),
]
Longer = Annotated[
    float | None,
    typer.Option(
        "--duration-over", metavar="S", min=0, help="Print only calls that took longer than S seconds."
    ),
]
Graph = Annotated[
    bool,
    typer.Option("--graph", help="At the end, print trees of calls with times, as function_graph does."),
]
MaxDepth = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="With --graph: also trace the functions that are called, and print N levels.",
    ),
]
HistogramOf = Annotated[
    str,
    typer.Option(
        metavar="EXPR",
        help="At the end, print how often which values of EXPR were; also of $ret and $duration.",
    ),
]
TopOf = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="At the end, print the N most frequent calls.")
]
Sched = Annotated[
    bool,
    typer.Option("--sched", help="Also record which task each CPU runs; for --format perfetto."),
]
Irqs = Annotated[
    bool, typer.Option("--irqs", help="Also record interrupts and soft interrupts; for --format perfetto.")
]
Listing = Annotated[
    bool,
    typer.Option(
        "--list",
        help="Trace nothing; list the functions and tracepoints that match, or one function's lines, with"
        " what can be read there.",
    ),
]
FormName = Annotated[
    str | None, typer.Option("--format", metavar="text|json|chrome|perfetto", help="Output format.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on each line, like --format json.")
]


@app.command(
    epilog=verb.examples(
        "vmdebug trace vfs_read:count --count 10",
        "vmdebug trace base-nixos do_sys_openat2:dfd,how->flags --when 'dfd == -100' --ret",
        "vmdebug trace vfs_read vfs_write --count-only --timeout 10",
        "vmdebug trace vfs_read --histogram '$duration'",
        "vmdebug trace ksys_read --graph --max-depth 3 --count 100",
        "vmdebug trace 'vfs_*' --ret --format perfetto > trace.pftrace",
        "vmdebug trace vfs_read --ret --sched --irqs --format perfetto > trace.pftrace",
        "vmdebug trace --list vfs_read",
        "vmdebug trace --recording crash.vmdrec vfs_read:count",
        "vmdebug trace sched:sched_switch:next_comm,next_pid --when 'next_pid > 1'",
    ),
)
def trace(
    words: Words = None,
    *,
    when: When = "",
    count: Count = None,
    backtrace: Backtrace = False,
    ret: Ret = False,
    count_only: CountOnly = False,
    by: Collector = "auto",
    overflow: OnFull = "block",
    until: Until = "",
    on_hit: OnHit = "print",
    recording: Recording = None,
    longer: Longer = None,
    graph: Graph = False,
    max_depth: MaxDepth = None,
    histogram: HistogramOf = "",
    top: TopOf = None,
    sched: Sched = False,
    irqs: Irqs = False,
    listing: Listing = False,
    timeout: Timeout = None,
    form: FormName = None,
    as_json: AsJson = False,
    force: options.Force = False,
) -> None:
    """Print calls of kernel functions, with arguments, while the guest runs.

    Prints one line for each call. Ctrl-C, --count, --until and --timeout end the trace. QEMU's plugin
    collects it if it is loaded (`start --trace-ready`), otherwise the guest's kernel by kprobes. GDB collects
    the places that they cannot: it stops the guest at each call, and detaches from it at the end.
    GROUP:EVENT:[FIELD,…] is a tracepoint, which only the guest's kernel can collect; likewise --sched and
    --irqs, with which SYMBOL can be left out.
    """
    chosen = _format(form, as_json=as_json)
    if (sched or irqs) and chosen != "perfetto":
        raise UsageError(
            "--sched and --irqs go with --format perfetto", hint="add it, or trace sched:sched_switch:"
        )
    summarized = bool(graph or histogram or top is not None)
    _check_summary(form, summarized=summarized, graph=graph, max_depth=max_depth)
    from vmdebug import collecting
    from vmdebug.cli import trace_formats, trace_list, trace_stop
    from vmdebug.trace import summary
    from vmdebug.trace.probe import Probe, wanted
    from vmdebug.trace.trace import Trace

    collecting.check(by)
    name, probes = _places(words or (), others=sched or irqs, recorded=recording is not None)
    if recording is not None:
        _refuse_beside(recording, listing=listing, on_hit=on_hit)
    if listing:
        trace_list.put(name, [each.where for each in probes], as_json=as_json)
        return
    roots = [each.where for each in probes] if (max_depth or 1) > 1 else []
    summaries = _summaries(graph=graph, max_depth=max_depth, roots=roots, histogram=histogram, top=top)
    asked = wanted(
        [Probe(each.where, (*each.args, *_collected(histogram))) for each in probes],
        when=when,
        count=count,
        backtrace=backtrace,
        ret=ret or graph or histogram in (summary.RET, summary.DURATION),
        count_only=count_only,
        overflow=cast("Overflow", overflow),
        until=until,
        longer=longer,
        callees=(max_depth or 1) - 1,
        sched=sched,
        irqs=irqs,
    )
    if on_hit != "print":
        trace_stop.run(name, asked, on_hit=on_hit, by=by, timeout=timeout, force=force)
        return
    with _guest(name, recording, force=force) as attached, interrupts() as over:
        attached.vm.check_alive("trace")
        with render.step(render.SYMBOLS):
            found = attached.collector(asked, cast("By", by))
        if found.reason:
            render.tell(f"{found.collector.name} collects: {found.reason}")
        hits = Trace(found.collector, found.wanted, reason=found.reason)
        given = batches(attached, hits, over, timeout)
        if count_only or summaries:
            put_batches(trace_formats.Summaries(*summaries), given)
        elif chosen == "perfetto":
            written = trace_formats.Perfetto(attached.vm.state.spec.kernel.release)
            put_batches(written, given, beside=lambda: written.put_activity(hits.activity))
        else:
            put_batches(trace_formats.FORMATS[chosen](), given)
    if count_only:
        put_counts(hits.counts, as_json=chosen == "json")
    else:
        render.tell(f"{len(hits)} hit{'' if len(hits) == 1 else 's'}")


def _check_summary(form: str | None, *, summarized: bool, graph: bool, max_depth: int | None) -> None:
    """Check the options of summaries.

    Raises:
        UsageError: they do not go together.
    """
    if max_depth is not None and not graph:
        raise UsageError("--max-depth goes with --graph", hint="add --graph")
    if form is not None and summarized:
        raise UsageError(f"--graph, --histogram and --top have no --format {form}", hint="leave one out")


def _refuse_beside(recording: Path, *, listing: bool, on_hit: str) -> None:
    """Refuse what needs a guest that stays.

    Raises:
        UsageError: one of them is given.
    """
    if listing or on_hit != "print":
        raise UsageError(
            "--recording goes with neither --list nor --on-hit",
            hint=f"replay it first: vmdebug replay {recording}",
        )


def _guest(name: str | None, recording: Path | None, *, force: bool) -> DebugSession:
    """Return the VM to trace: one that runs, or a replay at its begin, which ends with the session."""
    from vmdebug import session

    if recording is None:
        return session.attach(name, force=force)
    with render.progress() as report:
        return session.replay(recording, to="start", report=report)


def _format(form: str | None, *, as_json: bool) -> str:
    """Return the name of the output format."""
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} exclude each other", hint="give only one of them")
    chosen = "json" if as_json else form or "text"
    from vmdebug.cli.trace_formats import FORMATS

    if chosen not in FORMATS:
        raise UsageError(f"there is no format {chosen!r}", hint=f"the formats are {', '.join(FORMATS)}")
    return chosen


def _summaries(
    *, graph: bool, max_depth: int | None, roots: Sequence[str], histogram: str, top: int | None
) -> list[Summary]:
    """Return what is printed at the end instead of the hits."""
    from vmdebug.trace import summary

    found: list[Summary] = []
    if graph:
        found.append(summary.Graph(max_depth, roots))
    if histogram:
        found.append(summary.Histogram(histogram))
    if top is not None:
        found.append(summary.Top(top))
    return found


def _collected(histogram: str) -> tuple[str, ...]:
    """Return the expression that a histogram needs of each hit."""
    from vmdebug.trace import summary

    return (histogram,) if histogram and histogram not in (summary.RET, summary.DURATION) else ()


def put_counts(counts: Mapping[str, int], *, as_json: bool) -> None:
    """Print the number of calls of each function."""
    for symbol, number in counts.items():
        render.put(json.dumps({"symbol": symbol, "count": number}) if as_json else f"{number:12}  {symbol}")


def _places(words: Sequence[str], *, others: bool, recorded: bool) -> tuple[str | None, tuple[Probe, ...]]:
    """Return the name of the VM, None for the only one, and the probes.

    Args:
        words: The words of the command.
        others: Whether something else than probes is recorded.
        recorded: Whether a recording is traced, which needs no name.

    Raises:
        UsageError: there is nothing to record.
    """
    from vmdebug import vm
    from vmdebug.trace import probe

    if not words and not others:
        raise UsageError("no SYMBOL is given", hint="name a function: vmdebug trace vfs_read:count")
    named = not recorded and len(words) > int(not others) and words[0] in vm.names()
    return words[0] if named else None, probe.parse(words[1:] if named else words)


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event for the block, so that no batch of hits is lost."""
    over = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        over.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def batches(
    session: DebugSession, hits: Trace, over: threading.Event, timeout: float | None
) -> Iterator[Sequence[Hit]]:
    """Run a trace, and yield its hits as they come.

    Args:
        session: The session that it belongs to.
        hits: The trace, not started yet.
        over: Ends it.
        timeout: Seconds after which it ends; None for no limit.
    """
    from vmdebug.deadline import Deadline

    deadline = Deadline.after(timeout if timeout is not None else threading.TIMEOUT_MAX)
    given = 0
    printed: list[str] = []
    with hits:
        # To stderr: a person or a script may wait for this before it causes the first hit.
        render.tell("tracing; Ctrl-C ends it")
        while not (over.is_set() or hits.full or deadline.passed):
            over.wait(FETCH_SECONDS)
            fresh = hits.take()
            given += len(fresh)
            yield fresh
            _print_new_notes(printed, session, hits)
            if hits.ended:
                render.tell(hits.ended)
                break
    # The last hits, and calls that have not returned.
    yield hits[given:]
    _print_new_notes(printed, session, hits)


def _print_new_notes(printed: list[str], session: DebugSession, hits: Trace) -> None:
    """Print each note once, as soon as it is known; a user may wait for a condition that never holds."""
    for note in (*session.notes, *hits.notes):
        if note not in printed:
            printed.append(note)
            render.tell(note)


def put_batches(
    form: Form, given: Iterable[Sequence[Hit]], *, beside: Callable[[], None] = lambda: None
) -> None:
    """Print hits as they come, and flush after each batch.

    Args:
        form: The format.
        given: The batches.
        beside: Prints what has come beside a batch.
    """
    form.begin()
    for batch in given:
        for hit in batch:
            form.put(hit)
        beside()
        render.flush()
    form.end()
