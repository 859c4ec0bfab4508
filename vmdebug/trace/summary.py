"""Summaries of hits: histograms, the most frequent calls, and trees of calls."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

import msgspec

from vmdebug.trace.hit import Hit

RET, DURATION = "$ret", "$duration"
"""What a histogram can show besides expressions: return values, and times of calls in ns."""

_BAR = 40
_CLOSING = "}"


class Histogram:
    """Counts values in powers of two, for each place.

    Args:
        text: An expression of the trace, `RET` or `DURATION`.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._numbers: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._words: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, hit: Hit) -> None:
        """Count the value of a hit; a hit without one does not count."""
        value = self._value(hit)
        if isinstance(value, str):
            self._words[hit.symbol][value] += 1
        elif value is not None:
            self._numbers[hit.symbol][_bucket(value)] += 1

    def _value(self, hit: Hit) -> float | str | None:
        if self._text == RET:
            return hit.ret
        if self._text == DURATION:
            return None if hit.duration is None else hit.duration * 1e9
        return hit.args.get(self._text)

    def lines(self) -> Iterator[str]:
        """Yield the lines: for each place a bar for each range of numbers, or for each string."""
        unit = " in ns" if self._text == DURATION else ""
        for symbol in sorted({*self._numbers, *self._words}):
            yield f"{symbol}: {self._text}{unit}"
            numbers, words = self._numbers[symbol], self._words[symbol]
            most = max([*numbers.values(), *words.values()])
            if numbers:
                for bucket in range(min(numbers), max(numbers) + 1):
                    yield _bar(_range(bucket), numbers[bucket], most)
            for word, count in words.most_common():
                yield _bar(repr(word), count, most)


def _bucket(value: float) -> int:
    """Return the number of the power of two: 0 for 0, 1 for 1, 2 for 2 and 3, -1 for -1."""
    size = math.floor(abs(value)).bit_length()
    return -size if value < 0 else size


def _range(bucket: int) -> str:
    if bucket == 0:
        return "0"
    low, high = 1 << (abs(bucket) - 1), (1 << abs(bucket)) - 1
    if bucket < 0:
        low, high = -high, -low
    return str(low) if low == high else f"{low} … {high}"


def _bar(label: str, count: int, most: int) -> str:
    return f"{label:>28} {count:>10} |{'█' * math.ceil(_BAR * count / most):<{_BAR}}|"


class Top:
    """Counts calls by place and task, with the times that they took.

    Args:
        limit: The most lines.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[tuple[str, str]] = Counter()

    def add(self, hit: Hit) -> None:
        """Count a hit."""
        key = (hit.symbol, hit.task.comm if hit.task is not None else "?")
        self._counts[key] += 1
        if hit.duration is not None:
            self._seconds[key] += hit.duration  # type: ignore[assignment] # Counter's values may be floats

    def lines(self) -> Iterator[str]:
        """Yield a line for each of the most frequent places and tasks."""
        timed = bool(self._seconds)
        yield f"{'calls':>10}  {'seconds':>10}  {'mean':>10}  call" if timed else f"{'calls':>10}  call"
        for (symbol, comm), count in self._counts.most_common(self._limit):
            seconds = float(self._seconds[symbol, comm])
            times = f"  {seconds:10.6f}  {in_microseconds(seconds / count):>10}" if timed else ""
            yield f"{count:10}{times}  {symbol} by {comm}"


def in_microseconds(seconds: float) -> str:
    """Return a time as function_graph prints it."""
    return f"{seconds * 1e6:.3f} us"


class _Call(msgspec.Struct):
    """A call and the traced calls in it."""

    hit: Hit
    inside: list[_Call]


class Graph:
    """Puts the calls of each task into trees, by their times.

    Args:
        depth: The most levels to print; None for all.
        roots: The functions whose calls are the outermost ones to print; empty for all.
    """

    def __init__(self, depth: int | None = None, roots: Collection[str] = ()) -> None:
        self._depth = depth
        self._roots = frozenset(roots)
        self._hits: defaultdict[object, list[Hit]] = defaultdict(list)

    def add(self, hit: Hit) -> None:
        """Add a call."""
        self._hits[hit.task.pid if hit.task is not None and hit.task.pid else f"cpu{hit.cpu}"].append(hit)

    def lines(self) -> Iterator[str]:
        """Yield the lines of function_graph's format; see Documentation/trace/ftrace.rst."""
        yield "# CPU  TASK                   DURATION       FUNCTION CALLS"
        trees = [call for hits in self._hits.values() for call in _trees(hits)]
        roots = list(self._outermost(trees)) if self._roots else trees
        for call in sorted(roots, key=lambda each: each.hit.time):
            yield from self._call(call, 0)

    def _outermost(self, calls: list[_Call]) -> Iterator[_Call]:
        for call in calls:
            if call.hit.symbol in self._roots:
                yield call
            else:
                yield from self._outermost(call.inside)

    def _call(self, call: _Call, level: int) -> Iterator[str]:
        hit = call.hit
        ret = "" if hit.ret is None else f" /* = {hit.ret} */"
        args = ", ".join(f"{name}={value!r}" for name, value in hit.args.items())
        shown = call.inside if self._depth is None or level + 1 < self._depth else []
        if not shown:
            yield _line(hit, f"{'  ' * level}{hit.symbol}({args});{ret}", timed=True)
            return
        yield _line(hit, f"{'  ' * level}{hit.symbol}({args}) {{", timed=False)
        for each in shown:
            yield from self._call(each, level + 1)
        yield _line(hit, f"{'  ' * level}{_CLOSING}{ret}", timed=True)


def _trees(hits: list[Hit]) -> list[_Call]:
    """Return the outermost calls of one task; a call without a return has none inside."""
    roots: list[_Call] = []
    open_calls: list[_Call] = []
    for hit in sorted(hits, key=lambda each: (each.time, -(each.duration or 0))):
        while open_calls and _end(open_calls[-1].hit) <= hit.time:
            open_calls.pop()
        call = _Call(hit, [])
        (open_calls[-1].inside if open_calls else roots).append(call)
        if hit.duration is not None:
            open_calls.append(call)
    return roots


def _end(hit: Hit) -> float:
    return hit.time + (hit.duration or 0)


def _line(hit: Hit, text: str, *, timed: bool) -> str:
    task = f"{hit.task.comm}-{hit.task.pid}" if hit.task is not None else "?"
    took = in_microseconds(hit.duration) if timed and hit.duration is not None else ""
    return f"{hit.cpu:4})  {task:<20} {took:>14} |  {text}"
