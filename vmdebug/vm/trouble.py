"""Kernel trouble in what a console says: panics, oopses, warnings, and what the kernel's checkers report.

Formats as the kernel writes them: kernel/panic.c, lib/bug.c, arch/*/mm/fault.c and arch/*/kernel/traps.c,
kernel/locking/lockdep.c, kernel/rcu/tree_stall.h, kernel/hung_task.c, kernel/watchdog.c, mm/kasan/report.c,
lib/ubsan.c; Linux 4.19 to 6.19. Pure; `watcher` follows a console's log.

Programs can write the same words. Where the kernel stamps its lines with the time, as it does
unless somebody has switched that off, only stamped ones count, and a stamped one only once: `dmesg` on the
console repeats them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import msgspec

Kind = Literal[
    "panic",
    "oops",
    "bug",
    "warn",
    "lockdep",
    "kasan",
    "kcsan",
    "kfence",
    "kmsan",
    "ubsan",
    "lockup",
    "hung_task",
    "rcu_stall",
]
"""lockup: soft, hard, or of a workqueue. bug: BUG(), and all else that starts with `BUG:`, such as
"sleeping function called from invalid context"."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the kernel complained about.

    Args:
        kind: Which kind.
        headline: The line that says what it is, without its time stamp.
        text: The whole splat as the kernel printed it, what was printed between its lines left out.
        complete: Whether its end has been read; one that isn't may still grow.
        release: The kernel's release, where it says so; so are the following.
        cpu: The CPU.
        pid: The task.
        comm: The task's name.
    """

    kind: Kind
    headline: str
    text: str
    complete: bool
    release: str = ""
    cpu: int | None = None
    pid: int | None = None
    comm: str = ""


class _Form(NamedTuple):
    """What a kind of splat looks like.

    Args:
        kind: The kind.
        starts: Matches its headline from the line's start.
        whole: Matches the line with which all of it has been said that matters.
        ends: Matches its last line.
    """

    kind: Kind
    starts: re.Pattern[str]
    whole: re.Pattern[str]
    ends: re.Pattern[str]


_CUT_HERE = re.compile(r"-{6,}\[ cut here \]-{6,}")
_RULE = re.compile(r"={20,}$")
_END_OF_TRACE = re.compile(r"---\[ end trace ")
_END_OF_PANIC = re.compile(r"---\[ end Kernel panic")
_END_OF_STACK = re.compile(r" ?</TASK>")  # since 5.16; on other stacks <IRQ>, <NMI> a task's follows

_DIE = re.compile(r"(?:Oops|Internal error|Kernel BUG\b|[a-z][\w ,()-]+:)[^\[]*\[#(\d+)\]", re.IGNORECASE)
"""What `die` of arch/*/kernel writes: by itself for a fault that nothing announced, else below that."""

_FAULT = (
    r"BUG: (?:kernel NULL pointer dereference|[uU]nable to handle|(?:\S+ )?stack guard page)"
    r"|Unable to handle kernel |Insufficient stack space to handle exception"
    r"|(?:Oops: )?general protection fault|(?:traps: )?PANIC: double fault"
    r"|kernel tried to execute NX-protected page|unable to execute userspace code"
)
_LOCKDEP = (
    r"(?:WARNING|INFO): possible (?:circular|recursive|irq lock|reason: )"
    r"|WARNING: .*-unsafe lock order detected|WARNING: .* still has locks held"
    r"|WARNING: (?:inconsistent lock state|Nested lock was not taken|bad unlock balance|bad contention)"
    r"|WARNING: (?:held lock freed|lock held when returning|chain_key collision|suspicious RCU usage)"
    r"|INFO: trying to register non-static key|\[ BUG: |BUG: key \S+ has not been registered"
)


def _form(kind: Kind, starts: str, ends: re.Pattern[str], whole: re.Pattern[str] | None = None) -> _Form:
    return _Form(kind, re.compile(starts), whole or ends, ends)


_FORMS = (
    # QEMU's pvpanic device stops a guest between its stack and the last line.
    _form("panic", r"Kernel panic - not syncing", _END_OF_PANIC, whole=_END_OF_STACK),
    _form("kasan", r"BUG: KASAN: ", _RULE),
    _form("kcsan", r"BUG: KCSAN: ", _RULE),
    _form("kfence", r"BUG: KFENCE: ", _RULE),
    _form("kmsan", r"BUG: KMSAN: ", _RULE),
    # Since 6.9 it is cut out as a warning is: 47617e9434 ("ubsan: use cut here").
    _form("ubsan", r"UBSAN: .+ in ", re.compile(f"{_RULE.pattern}|{_END_OF_TRACE.pattern}")),
    _form("lockup", r"(?:[\w ]+: )?(?:BUG: (?:soft|workqueue) lockup|.*hard LOCKUP)", _END_OF_STACK),
    _form("rcu_stall", r"(?:rcu: )?INFO: \S+ (?:self-)?detected (?:expedited )?stalls? ", _END_OF_STACK),
    _form("hung_task", r"INFO: task .+:\d+ .*blocked .*for more than \d+ seconds", _END_OF_STACK),
    _form("lockdep", _LOCKDEP, _END_OF_STACK),
    _form("oops", _FAULT, _END_OF_TRACE),
    _form("bug", r"kernel BUG at ", _END_OF_TRACE),
    _form("bug", r"BUG: |BUG [\w.:-]+ \(", _END_OF_STACK),
    # The second is 6.19's.
    _form("warn", r"WARNING: (?:CPU: \d+ PID: \d+ at |.* at .*, CPU#\d+: )", _END_OF_TRACE),
    _form("oops", _DIE.pattern, _END_OF_TRACE),
)

_STAMP = re.compile(r"(?:<\d{1,3}>)?\[ *(\d+\.\d+)\](?:\[ *[TC]\d+ ?\])? ")
_BOOT = re.compile(r"Linux version \d")
_TASK = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{1,20}?) (?:Kdump: loaded )?"
    r"(?:Not tainted|Tainted: .*?) +(?P<release>\S+) #\d"
)
_HUNG = re.compile(r"INFO: task (?P<comm>.+):(?P<pid>\d+) ")

_GAP_SECONDS = 1.0
"""A splat is printed in one go: what the kernel says so much later is not of it."""

_LINES = 1000
"""How many lines a splat can have. RCU's, of many CPUs, are the longest."""

_OPENING_LINES = 12
"""How far below a "cut here" the line stands that says what it is about."""


@dataclass(slots=True)
class _Splat:
    """A splat that is being read."""

    lines: list[str]
    form: _Form | None = None
    headline: str = ""
    died: str = ""
    complete: bool = False
    task: dict[str, str] = field(default_factory=dict)

    def trouble(self, form: _Form) -> Trouble:
        task = self.task
        return Trouble(
            kind=form.kind,
            headline=self.headline,
            text="\n".join(self.lines),
            complete=self.complete,
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
        self._found: list[Trouble] = []
        self._open: _Splat | None = None
        self._before = ""
        self._time = 0.0
        self._told: set[str] = set()

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What has been found so far; the last one may still grow."""
        splat = self._open
        if splat is None or splat.form is None:
            return tuple(self._found)
        return (*self._found, splat.trouble(splat.form))

    @property
    def growing(self) -> bool:
        """Whether something has begun and not been told whole."""
        return self._open is not None and not self._open.complete

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
        self._close()

    def _line(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip("\r")
        stamp = _STAMP.search(line)
        said = line[stamp.end() :] if stamp else line
        if _BOOT.match(said) and (stamp or not self._stamped):
            self._boot(stamped=stamp is not None)
        if stamp is not None:
            self._stamped = True
            self._pause(float(stamp[1]))
            self._kernel_line(line[stamp.start() :], said)
        elif not self._stamped:
            self._kernel_line(line, said)

    def _boot(self, *, stamped: bool) -> None:
        """Begin anew: a kernel boots, by kexec or after a reset."""
        self._close()
        self._stamped = stamped
        self._time = 0.0
        self._told.clear()

    def _pause(self, time: float) -> None:
        if time > self._time + _GAP_SECONDS:
            self._close()
        self._time = max(self._time, time)

    def _kernel_line(self, line: str, said: str) -> None:
        before, self._before = self._before, line if _RULE.match(said) else ""
        if _CUT_HERE.match(said):
            self._begin(_Splat([line]))
            return
        form = next((each for each in _FORMS if each.starts.match(said)), None)
        if form is not None and not self._continues(said):
            if self._stamped and line in self._told:
                self._close()
                return
            self._told.add(line)
            self._headline(form, line, said, before)
        elif self._open is not None:
            self._open.lines.append(line)
        self._look(said)

    def _continues(self, said: str) -> bool:
        """Whether a line that could begin something is the `die` of what has begun already."""
        splat, die = self._open, _DIE.match(said)
        if splat is None or splat.form is None or die is None or splat.form.kind not in ("oops", "bug"):
            return False
        if splat.died not in ("", die[1]):
            return False
        splat.died = die[1]
        return True

    def _headline(self, form: _Form, line: str, said: str, before: str) -> None:
        splat = self._open
        if splat is None or splat.form is not None:
            splat = self._begin(_Splat([before] if before else []))
        # What WARN(condition, "…") has to say stands above, without anything before it.
        message = [_STAMP.sub("", each, count=1) for each in splat.lines[1:]] if form.kind == "warn" else []
        splat.headline = ": ".join([said, *message[:1]])
        splat.form = form
        splat.lines.append(line)
        die = _DIE.match(said)
        splat.died = die[1] if die else ""

    def _look(self, said: str) -> None:
        """Look at a line of the splat for who it is about, and for its end."""
        splat = self._open
        if splat is None:
            return
        if not splat.task.get("cpu") and (task := _TASK.search(said) or _HUNG.match(said)):
            splat.task.update(task.groupdict())
        if splat.form is None:
            if len(splat.lines) > _OPENING_LINES:
                self._open = None
            return
        splat.complete = splat.complete or splat.form.whole.match(said) is not None
        if splat.form.ends.match(said) or len(splat.lines) >= _LINES:
            self._close()

    def _begin(self, splat: _Splat) -> _Splat:
        self._close()
        self._open = splat
        return splat

    def _close(self) -> None:
        splat, self._open = self._open, None
        if splat is not None and splat.form is not None:
            splat.complete = True
            self._found.append(splat.trouble(splat.form))


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
