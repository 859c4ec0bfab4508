"""The formats in which `vmdebug trace` prints hits, and the summaries that it prints at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from vmdebug.cli import render
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.trace.activity import Activity
    from vmdebug.trace.hit import Hit


class Form(Protocol):
    """Prints hits."""

    def begin(self) -> None:
        """Print what is before the first hit."""

    def put(self, hit: Hit) -> None:
        """Print or count a hit."""

    def end(self) -> None:
        """Print what is after the last hit."""


class _Lines:
    """A format with lines for each hit."""

    first = last = ""

    def begin(self) -> None:
        """Print the first line."""
        if self.first:
            render.put(self.first)

    def put(self, hit: Hit) -> None:
        """Print the lines of a hit."""
        for line in self.lines(hit):
            render.put(line)

    def end(self) -> None:
        """Print the last line."""
        if self.last:
            render.put(self.last)

    def lines(self, hit: Hit) -> Iterator[str]:
        """Yield the lines of a hit."""
        raise NotImplementedError


class Text(_Lines):
    """One line a hit, with its backtrace below."""

    def lines(self, hit: Hit) -> Iterator[str]:
        """Yield the lines of a hit."""
        who = f"{hit.task.comm}:{hit.task.pid}" if hit.task is not None else "?"
        args = " ".join(f"{name}={shown(value)}" for name, value in hit.args.items())
        ret = "" if hit.ret is None else f"= {hit.ret}"
        ret += "" if hit.duration is None else f"  {hit.duration * 1e6:.3f} us"
        yield f"{hit.time:12.6f}  cpu{hit.cpu}  {who:<20}  {hit.symbol}  {args}  {ret}".rstrip()
        for level, call in enumerate(hit.backtrace):
            place = f" at {call.file}:{call.line}" if call.file else ""
            yield f"{'':14}#{level:<3}{call.function or hex(call.pc)}{place}"


class Json(_Lines):
    """One object a line for each hit."""

    def lines(self, hit: Hit) -> Iterator[str]:
        """Yield the line of a hit."""
        yield msgspec.json.encode(hit).decode()


class Chrome(_Lines):
    """The Trace Event Format that Perfetto and chrome://tracing read: an array of events.

    A task is a thread there. The array may end anywhere: a truncated trace is valid.
    """

    first = "["
    last = '{"name":"process_name","ph":"M","pid":1,"args":{"name":"the guest"}}]'

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
        kind: dict[str, Any] = {"ph": "i", "s": "t"}
        if hit.duration is not None:
            kind = {"ph": "X", "dur": round(hit.duration * 1e6, 3)}
        yield self._event(name=hit.symbol, **kind, ts=microseconds, tid=pid, args={**hit.args, **more})

    def _event(self, **event: Any) -> str:
        return json.dumps({**event, "pid": 1}) + ","


class Perfetto:
    """Perfetto's native format, which is binary.

    Args:
        release: The release of the guest's kernel.
    """

    def __init__(self, release: str = "") -> None:
        from vmdebug.trace.perfetto import Perfetto as Writer

        self._writer = Writer(release)

    def begin(self) -> None:
        """Refuse to write to a terminal.

        Raises:
            UsageError: the output is a terminal.
        """
        if sys.stdout.isatty():
            raise UsageError(
                "the format perfetto is binary, and the output is a terminal",
                hint="write it to a file: vmdebug trace … --format perfetto > trace.pftrace",
            )

    def put(self, hit: Hit) -> None:
        """Write the packets of a hit."""
        render.put_bytes(self._writer.packets(hit))

    def put_activity(self, done: list[Activity]) -> None:
        """Write what the scheduler and the interrupts did, and clear the list."""
        if done:
            render.put_bytes(self._writer.activity_packets(done))
            done.clear()

    def end(self) -> None:
        """Write nothing: a trace may end anywhere."""


class Summary(Protocol):
    """What is printed at the end of a trace."""

    def add(self, hit: Hit) -> None:
        """Count a hit."""

    def lines(self) -> Iterator[str]:
        """Yield the lines."""


class Summaries:
    """Prints summaries at the end, and no hits.

    Args:
        *summaries: What to print; nothing for a trace that only counts.
    """

    def __init__(self, *summaries: Summary) -> None:
        self._summaries = summaries

    def begin(self) -> None:
        """Print nothing."""

    def put(self, hit: Hit) -> None:
        """Count a hit."""
        for each in self._summaries:
            each.add(hit)

    def end(self) -> None:
        """Print the summaries."""
        for each in self._summaries:
            for line in each.lines():
                render.put(line)


FORMATS: dict[str, type[Text | Json | Chrome | Perfetto]] = {
    "text": Text,
    "json": Json,
    "chrome": Chrome,
    "perfetto": Perfetto,
}


def shown(value: float | str | None) -> str:
    """Return a value in the text format: addresses in hexadecimal, strings in quotes."""
    if value is None:
        return "?"
    if isinstance(value, int) and value >= _ADDRESSES:
        return hex(value)
    return json.dumps(value)


_ADDRESSES = 1 << 47
"""Numbers from here on are printed in hexadecimal: most are kernel addresses."""
