"""Finds kernel trouble in a console's output: panics, oopses, warnings, and reports of the kernel's checkers.

`headlines` has the table of headlines. This module is pure; `watcher` follows a console's log.

Programs may print the same text. If the kernel prints time stamps, as it does by default, only lines with a
time stamp count, and each only once, because `dmesg` on the console repeats them.

Several CPUs may print at once. If the kernel prints the caller of a line after the time stamp
(CONFIG_PRINTK_CALLER: the task, or the CPU in an interrupt), the lines of different callers are separated. If
it does not, `Trouble.interleaved` marks a splat that contains lines of another one.

QEMU's log of a console may contain a character twice: `qemu_chr_write_buffer` of chardev/char.c logs a
character when the client's socket is full, and again when the socket accepts it. So lines are compared with
every run of one character reduced to one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from vmdebug.channel.log import death, headlines
from vmdebug.channel.log.headlines import KINDS, Form, Kind, squeezed

__all__ = ["KINDS", "Kind", "Scanner", "Trouble", "as_logged", "find", "in_words", "unseen"]


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """One report of kernel trouble.

    Args:
        kind: Its kind.
        headline: Its first line, without the time stamp.
        text: The whole splat as the kernel printed it, without other output between its lines.
        complete: Whether its end has been read; otherwise it may grow.
        time: The headline's time stamp: "12.345678"; or "".
        interleaved: Whether the text contains lines that another CPU printed at the same time.
        release: The kernel's release, if the splat has it; likewise the following.
        cpu: The CPU.
        pid: The task's pid.
        comm: The task's name.
    """

    kind: Kind
    headline: str
    text: str
    complete: bool
    time: str = ""
    interleaved: bool = False
    release: str = ""
    cpu: int | None = None
    pid: int | None = None
    comm: str = ""


_CUT_HERE = headlines.pattern(r"-\[ cut here \]-")
_BOOT = headlines.pattern(r"Linux version \d")

_STAMP = re.compile(
    r"(?:<\d{1,3}>)?\[ *(?P<seconds>\d+)\.+(?P<fraction>\d+)\]+"
    r"(?: ?\[+ *(?P<caller>[TC]+\d+)[^\]\n]{0,40}\]+)? "
)
"""print_prefix of kernel/printk/printk.c; dmesg(1) puts a space before the caller."""

_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[0-Z\\^-~])")
"""Control sequences of ECMA-48: CSI, OSC, and two-character sequences."""

_TASK = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{0,20}?) (?:Kdump: loaded )?"
    r"(?:Not tainted|Tainted: .*?) +(?P<release>\S+) #\d"
)
_HUNG = re.compile(r"INFO: task (?P<comm>.*):(?P<pid>\d+) ")

_GAP_SECONDS = 1
"""A splat is printed without pauses: a line that comes this much later does not belong to it."""

_LINES = 1000
"""Maximum number of lines of a splat. RCU stalls of many CPUs are the longest."""

_OPENING_LINES = 12
"""Maximum number of lines between a "cut here" and the headline."""


class _Line(NamedTuple):
    """A line of the kernel.

    Args:
        text: The whole line, with its time stamp.
        message: The text after the time stamp.
        key: The squeezed message.
        caller: The caller; "" if the kernel does not print it.
        time: The time stamp, or "".
    """

    text: str
    message: str
    key: str
    caller: str = ""
    time: str = ""


@dataclass(slots=True)
class _Splat:
    """A splat that is being read."""

    lines: list[_Line]
    form: Form | None = None
    headline: str = ""
    time: str = ""
    last: int = 0
    died: str = ""
    complete: bool = False
    interleaved: bool = False
    task: dict[str, str] = field(default_factory=dict)

    def trouble(self) -> Trouble:
        assert self.form is not None  # noqa: S101 - the callers have checked this
        task = self.task
        return Trouble(
            kind=self.form.kind,
            headline=self.headline,
            text="\n".join(line.text for line in self.lines),
            complete=self.complete,
            time=self.time,
            interleaved=self.interleaved,
            release=task.get("release", ""),
            cpu=int(task["cpu"]) if "cpu" in task else None,
            pid=int(task["pid"]) if "pid" in task else None,
            comm=task.get("comm", ""),
        )


class Scanner:
    """Finds trouble in a console's output, which arrives in pieces.

    Args:
        stamped: Whether the kernel prints time stamps; None: yes after the first line with one. Set it if the
            start of the output is missing, as for a clone.
    """

    def __init__(self, *, stamped: bool | None = None) -> None:
        self._stamped = stamped
        self._rest = b""
        self._found: list[_Splat] = []
        self._open: dict[str, _Splat] = {}
        self._before: dict[str, _Line] = {}
        self._time = 0
        self._seen: set[str] = set()

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The trouble found so far, in the order of the headlines; the last ones may still grow."""
        return tuple(each.trouble() for each in self._found)

    @property
    def growing(self) -> bool:
        """Whether a splat has started and is not complete."""
        return any(not each.complete for each in self._open.values())

    def feed(self, data: bytes) -> None:
        """Process the next piece of output."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)

    def finish(self) -> None:
        """Process the rest; there is no more output."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""
        self._close_all()

    def _line(self, raw: bytes) -> None:
        whole = raw.decode(errors="replace").rstrip("\r")
        if "\x1b" in whole:
            whole = _CONTROL.sub("", whole)
        if death.is_restored_mark(whole):
            # The time restarts there, and repeated lines are new events.
            self._boot(stamped=self._stamped)
        for line in _parts(whole):
            if _BOOT.match(line.key) and (line.time or not self._stamped):
                self._boot(stamped=bool(line.time))
            if line.time:
                self._stamped = True
                self._pause(int(line.time.partition(".")[0]))
            if line.time or not self._stamped:
                self._kernel_line(line)

    def _boot(self, *, stamped: bool | None) -> None:
        """Reset the state: a kernel boots, or a snapshot was restored."""
        self._close_all()
        self._stamped = stamped
        self._time = 0
        self._seen.clear()
        self._before.clear()

    def _pause(self, time: int) -> None:
        """Close splats that have not continued for a while."""
        self._time = max(self._time, time)
        for caller, splat in [*self._open.items()]:
            if time > splat.last + _GAP_SECONDS:
                self._close(caller)

    def _kernel_line(self, line: _Line) -> None:
        before = self._before.pop(line.caller, None)
        if headlines.RULE.match(line.key):
            self._before[line.caller] = line
        if _CUT_HERE.match(line.key):
            self._begin(_Splat([line]), line)
            return
        form = headlines.form(line.key)
        if form is not None and not self._continues(form, line):
            if self._again(line):
                self._close(line.caller)
                return
            self._headline(form, line, before)
        elif (splat := self._open.get(line.caller)) is not None:
            splat.lines.append(line)
            splat.last = self._time
        self._look(line)

    def _again(self, line: _Line) -> bool:
        """Whether this headline, with this time stamp, was seen before."""
        known = squeezed(f"{line.time} {line.message}")
        again = bool(self._stamped) and known in self._seen
        self._seen.add(known)
        return again

    def _continues(self, form: Form, line: _Line) -> bool:
        """Whether a line that looks like a headline belongs to the open splat."""
        splat = self._open.get(line.caller)
        if splat is None:
            return False
        if splat.form is None:
            return form.alone
        if splat.form.kind == form.kind and splat.form.ends.pattern and splat.form.ends.match(line.key):
            return True
        die = headlines.DIE.match(line.key)
        if die is None or splat.form.kind not in ("oops", "bug"):
            return False
        if splat.died not in ("", die[1]):
            return False
        splat.died = die[1]
        return True

    def _headline(self, form: Form, line: _Line, before: _Line | None) -> None:
        splat = self._open.get(line.caller)
        if splat is None or splat.form is not None:
            splat = self._begin(_Splat([before] if before else []), line)
        # The message of WARN(condition, "…") is the line above.
        message = [each.message for each in splat.lines[1:2]] if form.kind == "warn" else []
        splat.headline = ": ".join([line.message, *message])
        splat.time = line.time
        splat.form = form
        splat.lines.append(line)
        splat.last = self._time
        die = headlines.DIE.match(line.key)
        splat.died = die[1] if die else ""
        self._found.append(splat)

    def _look(self, line: _Line) -> None:
        """Look in a line of the splat for the task and CPU, and for its end."""
        splat = self._open.get(line.caller)
        if splat is None:
            return
        if task := _TASK.search(line.message) or _HUNG.match(line.message):
            named = task.groupdict()
            if not splat.task.get("cpu"):
                splat.task.update(named)
            elif named.get("cpu") and named["cpu"] != splat.task["cpu"] and not line.caller:
                splat.interleaved = splat.form is not None and splat.form.kind in _ONE_CPU
        if splat.form is None:
            if len(splat.lines) > _OPENING_LINES:
                del self._open[line.caller]
            return
        splat.complete = splat.complete or splat.form.whole.match(line.key) is not None
        if splat.form.ends.match(line.key) or len(splat.lines) >= _LINES:
            self._close(line.caller)

    def _begin(self, splat: _Splat, line: _Line) -> _Splat:
        """Open a splat, and close the open one of the same caller."""
        other = self._open.get(line.caller)
        # Before the end of its trace, a CPU prints nothing else, except the panic of panic_on_warn.
        panics = line.key.startswith("Kernel panic")
        if other is not None and not (line.caller or other.complete or panics):
            splat.interleaved = other.interleaved = _traced(other)
        self._close(line.caller)
        self._open[line.caller] = splat
        splat.last = self._time
        return splat

    def _close(self, caller: str) -> None:
        splat = self._open.pop(caller, None)
        if splat is not None:
            splat.complete = True

    def _close_all(self) -> None:
        for caller in [*self._open]:
            self._close(caller)


_ONE_CPU = ("oops", "bug", "warn", "kasan", "kfence", "kmsan", "msr", "page_alloc")
"""Kinds of splats that concern one CPU."""


def _traced(splat: _Splat) -> bool:
    """Whether an open splat still lacks its "end trace", so that other lines belong to another CPU."""
    form = splat.form
    return form is None or (form.ends is headlines.END_OF_TRACE and form.kind != "oops")


def _parts(whole: str) -> Iterator[_Line]:
    """Split a line at its time stamps: a message without a newline is followed by the next stamp."""
    stamps = [*_STAMP.finditer(whole)]
    if not stamps:
        yield _Line(whole, whole, squeezed(whole).lstrip())
        return
    ends = [*(stamp.start() for stamp in stamps[1:]), len(whole)]
    for stamp, end in zip(stamps, ends, strict=True):
        message = whole[stamp.end() : end]
        caller = squeezed(stamp["caller"] or "")
        time = f"{stamp['seconds']}.{stamp['fraction']}"
        yield _Line(whole[stamp.start() : end], message, squeezed(message).lstrip(), caller, time)


def find(text: str, *, stamped: bool | None = None) -> tuple[Trouble, ...]:
    """Return the trouble in a console's output, in order.

    Args:
        text: The output.
        stamped: See `Scanner`.
    """
    scanner = Scanner(stamped=stamped)
    scanner.feed(text.encode(errors="surrogateescape"))
    scanner.finish()
    return scanner.troubles


def in_words(troubles: Sequence[Trouble]) -> str:
    """Return the first of several troubles, and how many more there are, for an error."""
    first, *more = troubles
    others = f" (and {len(more)} more)" if more else ""
    return f"kernel {first.kind}: {first.headline}{others}"


def as_logged(troubles: Iterable[Trouble], log: str | Iterable[Trouble]) -> tuple[Trouble, ...]:
    """Return the trouble of a console with the texts of the kernel's own log, as far as it has them.

    A character that QEMU wrote twice changes a symbol's name or size. The log in guest memory does not have
    such errors, and always has the callers, which separate the lines of several CPUs.

    Args:
        troubles: The trouble.
        log: The output of dmesg(1), or the trouble in it.
    """
    logged: dict[tuple[str, ...], list[Trouble]] = defaultdict(list)
    for each in find(log, stamped=True) if isinstance(log, str) else log:
        if not each.interleaved:
            logged[_moment(each)].append(each)
    found = []
    for each in troubles:
        same = logged[_moment(each)]
        if same:
            clean = same.pop(0)
            each = msgspec.structs.replace(each, text=clean.text, interleaved=False)  # noqa: PLW2901 - the same
        found.append(each)
    return tuple(found)


def unseen(logged: Iterable[Trouble], shown: Iterable[Trouble]) -> tuple[Trouble, ...]:
    """Return the trouble in the kernel's own log that the console did not show.

    Args:
        logged: The trouble in the log, which has time stamps.
        shown: The trouble on the console, which may have no time stamps.
    """
    stamped: set[tuple[str, ...]] = set()
    plain: dict[tuple[str, ...], int] = defaultdict(int)
    for each in shown:
        if each.time:
            stamped.add(_moment(each))
        else:
            plain[_moment(each)[1:]] += 1
    found = []
    for each in logged:
        moment = _moment(each)
        if moment in stamped:
            continue
        if plain[moment[1:]]:
            plain[moment[1:]] -= 1
        else:
            found.append(each)
    return tuple(found)


_COMPARED = 40
"""Number of characters of a headline to compare, because other output may cut it off."""


def _moment(trouble: Trouble) -> tuple[str, ...]:
    return squeezed(trouble.time), trouble.kind, squeezed(trouble.headline).lstrip()[:_COMPARED]
