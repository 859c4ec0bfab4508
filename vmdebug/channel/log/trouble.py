"""Kernel trouble in what a console says: panics, oopses, warnings, and what the kernel's checkers report.

`headlines` has the table of first lines. Pure; `watcher` follows a console's log.

Programs can write the same words. Where the kernel stamps its lines with the time, as it does
unless somebody has switched that off, only stamped ones count, and a stamped one only once: `dmesg` on the
console repeats them.

Several CPUs can print at once. Where the kernel says behind the time stamp who prints a line
(CONFIG_PRINTK_CALLER: the task, or the CPU in an interrupt), each caller's lines are kept apart. Where it
does not, a splat that others were printed into says so: `Trouble.interleaved`.

QEMU's log of a console can have a character twice: `qemu_chr_write_buffer` of its chardev/char.c logs it
also when the socket beside the log is full, and again when that takes it. So lines are compared with
every run of one character squeezed into one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from vmdebug.channel.log import death, headlines
from vmdebug.channel.log.headlines import KINDS, Form, Kind, squeezed

__all__ = ["KINDS", "Kind", "Scanner", "Trouble", "as_logged", "find", "unseen"]


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the kernel complained about.

    Args:
        kind: Which kind.
        headline: The line that says what it is, without its time stamp.
        text: The whole splat as the kernel printed it, what was printed between its lines left out.
        complete: Whether its end has been read; one that isn't may still grow.
        time: When it was printed, as in the headline's time stamp: "12.345678"; "" without a stamp.
        interleaved: Whether the text has lines that another CPU printed at the same time.
        release: The kernel's release, where it says so; so are the following.
        cpu: The CPU.
        pid: The task.
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
"""Control sequences of ECMA-48: CSI, OSC, and those of two characters."""

_TASK = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{0,20}?) (?:Kdump: loaded )?"
    r"(?:Not tainted|Tainted: .*?) +(?P<release>\S+) #\d"
)
_HUNG = re.compile(r"INFO: task (?P<comm>.*):(?P<pid>\d+) ")

_GAP_SECONDS = 1
"""A splat is printed in one go: what the kernel says so much later is not of it."""

_LINES = 1000
"""How many lines a splat can have. RCU's, of many CPUs, are the longest."""

_OPENING_LINES = 12
"""How far below a "cut here" the line stands that says what it is about."""


class _Line(NamedTuple):
    """A line of the kernel's.

    Args:
        text: All of it, from its time stamp on.
        said: What is behind its time stamp.
        key: That, squeezed.
        caller: Who printed it; "" where the kernel does not say.
        time: Its time stamp; "" without.
    """

    text: str
    said: str
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
        assert self.form is not None  # noqa: S101 - callers have looked
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
    """Finds trouble in a console's stream, whatever pieces it comes in.

    Args:
        stamped: Whether the kernel stamps its lines; None: it does from the first that is stamped on. Where
            the beginning of the console isn't seen, as of a clone's, it is better said.
    """

    def __init__(self, *, stamped: bool | None = None) -> None:
        self._stamped = stamped
        self._rest = b""
        self._found: list[_Splat] = []
        self._open: dict[str, _Splat] = {}
        self._before: dict[str, _Line] = {}
        self._time = 0
        self._told: set[str] = set()

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What has been found so far, in the order of the headlines; the last ones may still grow."""
        return tuple(each.trouble() for each in self._found)

    @property
    def growing(self) -> bool:
        """Whether something has begun and not been told whole."""
        return any(not each.complete for each in self._open.values())

    def feed(self, data: bytes) -> None:
        """Take in what comes next."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)

    def finish(self) -> None:
        """Take what has come for all there will be."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""
        self._close_all()

    def _line(self, raw: bytes) -> None:
        whole = raw.decode(errors="replace").rstrip("\r")
        if "\x1b" in whole:
            whole = _CONTROL.sub("", whole)
        if death.went_back(whole):
            # Time begins there once more, and what is told again has happened again.
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
        """Begin anew: a kernel boots, by kexec or after a reset, or goes back to a snapshot."""
        self._close_all()
        self._stamped = stamped
        self._time = 0
        self._told.clear()
        self._before.clear()

    def _pause(self, time: int) -> None:
        """Close what has not gone on for a while."""
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
        """Whether a headline has been seen before, with the same time stamp."""
        known = squeezed(f"{line.time} {line.said}")
        again = bool(self._stamped) and known in self._told
        self._told.add(known)
        return again

    def _continues(self, form: Form, line: _Line) -> bool:
        """Whether a line that could begin something belongs to what has begun already."""
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
        # What WARN(condition, "…") has to say stands above, without anything before it.
        message = [each.said for each in splat.lines[1:2]] if form.kind == "warn" else []
        splat.headline = ": ".join([line.said, *message])
        splat.time = line.time
        splat.form = form
        splat.lines.append(line)
        splat.last = self._time
        die = headlines.DIE.match(line.key)
        splat.died = die[1] if die else ""
        self._found.append(splat)

    def _look(self, line: _Line) -> None:
        """Look at a line of the splat for who it is about, and for its end."""
        splat = self._open.get(line.caller)
        if splat is None:
            return
        if task := _TASK.search(line.said) or _HUNG.match(line.said):
            told = task.groupdict()
            if not splat.task.get("cpu"):
                splat.task.update(told)
            elif told.get("cpu") and told["cpu"] != splat.task["cpu"] and not line.caller:
                splat.interleaved = splat.form is not None and splat.form.kind in _ONE_CPU
        if splat.form is None:
            if len(splat.lines) > _OPENING_LINES:
                del self._open[line.caller]
            return
        splat.complete = splat.complete or splat.form.whole.match(line.key) is not None
        if splat.form.ends.match(line.key) or len(splat.lines) >= _LINES:
            self._close(line.caller)

    def _begin(self, splat: _Splat, line: _Line) -> _Splat:
        """Open a splat, and close the one of the same caller that is open."""
        other = self._open.get(line.caller)
        # One CPU prints nothing else between a trace and its end, but the panic of panic_on_warn.
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
"""Kinds whose splat is about one CPU."""


def _traced(splat: _Splat) -> bool:
    """Whether a splat ends with an "end trace" that has not come: another CPU's words came between."""
    form = splat.form
    return form is None or (form.ends is headlines.END_OF_TRACE and form.kind != "oops")


def _parts(whole: str) -> Iterator[_Line]:
    """Split a line at its time stamps: a message without newline is followed by another one's stamp."""
    stamps = [*_STAMP.finditer(whole)]
    if not stamps:
        yield _Line(whole, whole, squeezed(whole).lstrip())
        return
    ends = [*(stamp.start() for stamp in stamps[1:]), len(whole)]
    for stamp, end in zip(stamps, ends, strict=True):
        said = whole[stamp.end() : end]
        caller = squeezed(stamp["caller"] or "")
        time = f"{stamp['seconds']}.{stamp['fraction']}"
        yield _Line(whole[stamp.start() : end], said, squeezed(said).lstrip(), caller, time)


def find(text: str, *, stamped: bool | None = None) -> tuple[Trouble, ...]:
    """Return the trouble in a console's text, in its order.

    Args:
        text: What the console said.
        stamped: See `Scanner`.
    """
    scanner = Scanner(stamped=stamped)
    scanner.feed(text.encode(errors="surrogateescape"))
    scanner.finish()
    return scanner.troubles


def as_logged(troubles: Iterable[Trouble], log: str | Iterable[Trouble]) -> tuple[Trouble, ...]:
    """Return trouble that was read on a console with the texts of the kernel's own log, where that has it.

    A character that QEMU wrote twice makes a symbol's name, or its size, another one; and the log in guest
    memory always has the callers, by which the lines of several CPUs are told apart.

    Args:
        troubles: The trouble.
        log: What dmesg(1) prints, or would; or the trouble in it.
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
    """Return the trouble in the kernel's own log that a console did not show.

    Args:
        logged: The trouble in the log, where each line has its time stamp.
        shown: The trouble on the console, whose kernel may print no time stamps.
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


_TOLD_APART = 40
"""How many characters of a headline count: what was printed between its lines may end it."""


def _moment(trouble: Trouble) -> tuple[str, ...]:
    return squeezed(trouble.time), trouble.kind, squeezed(trouble.headline).lstrip()[:_TOLD_APART]
