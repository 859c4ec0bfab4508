"""`vmdebug trace`: prints calls of kernel functions, with arguments, while the guest runs."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vmdebug.cli import options, render, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.collecting import By
    from vmdebug.session import DebugSession
    from vmdebug.trace.hit import Hit
    from vmdebug.trace.probe import Overflow, Probe
    from vmdebug.trace.trace import Trace

FETCH_SECONDS = 0.1
"""How often hits are fetched and printed."""

app = verb.new_app()


Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME] SYMBOL[:EXPR,…]…",
        help="The VM, if several run; the functions, with the expressions to print.",
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
        metavar="auto|plugin|gdb",
        help="Who collects: a plugin in QEMU, which does not stop the guest, or GDB. auto: the plugin if it"
        " can.",
    ),
]
OnFull = Annotated[
    str,
    typer.Option(
        metavar="block|drop",
        help="If hits come faster than the plugin's are printed: make the guest wait, or drop some.",
    ),
]
Timeout = Annotated[float | None, typer.Option(metavar="S", min=0, help="Stop after S seconds.")]
Form = Annotated[str | None, typer.Option("--format", metavar="text|json|chrome", help="Output format.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on each line, like --format json.")
]


@app.command(
    epilog=verb.examples(
        "vmdebug trace vfs_read:count --count 10",
        "vmdebug trace base-nixos do_sys_openat2:dfd,how->flags --when 'dfd == -100' --ret",
        "vmdebug trace vfs_read vfs_write --count-only --timeout 10",
        "vmdebug trace schedule --backtrace --format chrome > trace.json   # for Perfetto",
    ),
)
def trace(
    words: Words,
    *,
    when: When = "",
    count: Count = None,
    backtrace: Backtrace = False,
    ret: Ret = False,
    count_only: CountOnly = False,
    by: Collector = "auto",
    overflow: OnFull = "block",
    timeout: Timeout = None,
    form: Form = None,
    as_json: AsJson = False,
    force: options.Force = False,
) -> None:
    """Print calls of kernel functions, with arguments, while the guest runs.

    Prints one line for each call. Ctrl-C, --count and --timeout end the trace. QEMU's plugin collects it if
    it is loaded (`start --trace-ready`) and can collect all of this; otherwise GDB, which stops the guest at
    each call, and detaches from it at the end.
    """
    chosen = _format(form, as_json=as_json)
    from vmdebug import session
    from vmdebug.trace.probe import wanted
    from vmdebug.trace.trace import Trace

    name, probes = _places(words)
    asked = wanted(
        probes,
        when=when,
        count=count,
        backtrace=backtrace,
        ret=ret,
        count_only=count_only,
        overflow=cast("Overflow", overflow),
    )
    with session.attach(name, force=force) as attached, interrupts() as over:
        attached.vm.check_alive("trace")
        with render.step(render.SYMBOLS):
            found = attached.collector(asked, cast("By", by))
        if found.reason:
            render.tell(f"{found.collector.name} collects: {found.reason}")
        form_of = FORMATS[chosen]() if not count_only else Nothing()
        hits = Trace(found.collector, asked, reason=found.reason)
        put_batches(form_of, batches(attached, hits, over, timeout))
    if count_only:
        put_counts(hits.counts, as_json=chosen == "json")
    else:
        render.tell(f"{len(hits)} hit{'' if len(hits) == 1 else 's'}")


def _format(form: str | None, *, as_json: bool) -> str:
    """Return the name of the output format."""
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} exclude each other", hint="give only one of them")
    chosen = "json" if as_json else form or "text"
    if chosen not in FORMATS:
        raise UsageError(f"there is no format {chosen!r}", hint=f"the formats are {', '.join(FORMATS)}")
    return chosen


def put_counts(counts: Mapping[str, int], *, as_json: bool) -> None:
    """Print the number of calls of each function."""
    for symbol, number in counts.items():
        render.put(json.dumps({"symbol": symbol, "count": number}) if as_json else f"{number:12}  {symbol}")


def _places(words: Sequence[str]) -> tuple[str | None, tuple[Probe, ...]]:
    """Return the name of the VM, None for the only one, and the probes."""
    from vmdebug import vm
    from vmdebug.trace import probe

    named = len(words) > 1 and words[0] in vm.names()
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


class Text:
    """One line a hit, with its backtrace below."""

    begin = end = ""

    def lines(self, hit: Hit) -> Iterator[str]:
        """Yield the lines of a hit."""
        who = f"{hit.task.comm}:{hit.task.pid}" if hit.task is not None else "?"
        args = " ".join(f"{name}={shown(value)}" for name, value in hit.args.items())
        ret = "" if hit.ret is None else f"= {hit.ret}"
        yield f"{hit.time:12.6f}  cpu{hit.cpu}  {who:<20}  {hit.symbol}  {args}  {ret}".rstrip()
        for level, call in enumerate(hit.backtrace):
            place = f" at {call.file}:{call.line}" if call.file else ""
            yield f"{'':14}#{level:<3}{call.function or hex(call.pc)}{place}"


class Json:
    """One object a line for each hit."""

    begin = end = ""

    def lines(self, hit: Hit) -> Iterator[str]:
        """Yield the line of a hit."""
        import msgspec

        yield msgspec.json.encode(hit).decode()


class Chrome:
    """The Trace Event Format that Perfetto and chrome://tracing read: an array of instant events.

    A task is a thread there. The array may end anywhere: a truncated trace is valid.
    """

    begin = "["
    end = '{"name":"process_name","ph":"M","pid":1,"args":{"name":"the guest"}}]'

    def __init__(self) -> None:
        self._named: dict[int, str] = {}

    def lines(self, hit: Hit) -> Iterator[str]:
        """Yield the events of a hit: the task's name if it is new, and the hit."""
        pid, comm = (hit.task.pid, hit.task.comm) if hit.task is not None else (0, "?")
        if self._named.get(pid) != comm:
            self._named[pid] = comm
            yield self._event(name="thread_name", ph="M", tid=pid, args={"name": comm})
        more: dict[str, Any] = {"cpu": hit.cpu, "guest_time": hit.guest_time}
        more |= {} if hit.ret is None else {"ret": hit.ret}
        more |= (
            {"backtrace": [call.function or hex(call.pc) for call in hit.backtrace]} if hit.backtrace else {}
        )
        microseconds = round(hit.time * 1e6, 3)
        yield self._event(name=hit.symbol, ph="i", s="t", ts=microseconds, tid=pid, args={**hit.args, **more})

    def _event(self, **event: Any) -> str:
        return json.dumps({**event, "pid": 1}) + ","


class Nothing:
    """No hits, in a trace that only counts."""

    begin = end = ""

    def lines(self, hit: Hit) -> Iterator[str]:  # noqa: ARG002 - see Text
        """Yield nothing."""
        return iter(())


FORMATS: dict[str, type[Text | Json | Chrome]] = {"text": Text, "json": Json, "chrome": Chrome}


def shown(value: float | str | None) -> str:
    """Return a value in the text format: addresses in hexadecimal, strings in quotes."""
    if value is None:
        return "?"
    if isinstance(value, int) and value >= _ADDRESSES:
        return hex(value)
    return json.dumps(value)


_ADDRESSES = 1 << 47
"""Numbers from here on are printed in hexadecimal: most are kernel addresses."""


def put_batches(form: Text | Json | Chrome | Nothing, given: Iterable[Sequence[Hit]]) -> None:
    """Print hits as they come, and flush after each batch."""
    if form.begin:
        render.put(form.begin)
    for batch in given:
        for hit in batch:
            for line in form.lines(hit):
                render.put(line)
        sys.stdout.flush()
    if form.end:
        render.put(form.end)
