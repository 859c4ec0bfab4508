"""Kernel trouble in what a console says: panics, oopses, warnings, and what the kernel's checkers report.

Formats as the kernel writes them: kernel/panic.c, lib/bug.c, arch/*/mm/fault.c and arch/*/kernel/traps.c,
kernel/locking/lockdep.c, kernel/rcu/tree_stall.h, kernel/hung_task.c, kernel/watchdog.c, mm/kasan/report.c,
lib/ubsan.c; Linux 4.19 to 6.19. Pure; `watcher` follows a console's log.

Programs can write the same words. Where the kernel stamps its lines with the time, as it does
unless somebody has switched that off, only stamped ones count, and a stamped one only once: `dmesg` on the
console repeats them.

QEMU's log of a console can have a character twice: `qemu_chr_write_buffer` of its chardev/char.c logs it
also when the socket beside the log is full, and again when that takes it. So lines are compared with
every run of one character squeezed into one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import msgspec

from vmdebug.channel.log import death

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


_RUN = re.compile(r"(.)\1+")


def _squeezed(text: str) -> str:
    return _RUN.sub(r"\1", text)


def _pattern(words: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """Return a pattern for squeezed text; punctuation has to be written squeezed."""
    return re.compile(re.sub(r"([A-Za-z])\1", r"\1", words), flags)


_CUT_HERE = _pattern(r"-\[ cut here \]-")
_RULE = _pattern(r"=$")
_END_OF_TRACE = _pattern(r"-\[ end trace ")
_END_OF_PANIC = _pattern(r"-\[ end Kernel panic")
_END_OF_STACK = _pattern(r"</TASK>")  # since 5.16; on other stacks <IRQ>, <NMI> a task's follows

_DIE = _pattern(
    r"(?:(?:Oops|Internal error|Kernel BUG\b)[^\[]*|[a-z][\w ,()-]+: [0-9a-f]+ )\[#(\d+)\]", re.IGNORECASE
)
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
    return _Form(kind, _pattern(starts), whole or ends, ends)


_FORMS = (
    # QEMU's pvpanic device stops a guest between its stack and the last line.
    _form("panic", r"Kernel panic - not syncing", _END_OF_PANIC, whole=_END_OF_STACK),
    _form("kasan", r"BUG: KASAN: ", _RULE),
    _form("kcsan", r"BUG: KCSAN: ", _RULE),
    _form("kfence", r"BUG: KFENCE: ", _RULE),
    _form("kmsan", r"BUG: KMSAN: ", _RULE),
    # Newer kernels cut it out as they do a warning.
    _form("ubsan", r"UBSAN: .+ in ", _pattern(f"{_RULE.pattern}|{_END_OF_TRACE.pattern}")),
    _form("lockup", r"(?:[\w ]+: )?(?:BUG: (?:soft|workqueue) lockup|.*hard LOCKUP)", _END_OF_STACK),
    _form("rcu_stall", r"(?:rcu: )?INFO: \S+ (?:self-)?detected (?:expedited )?stalls? ", _END_OF_STACK),
    _form("hung_task", r"INFO: task .+:\d+ .*blocked .*for more than \d+ seconds", _END_OF_STACK),
    _form("lockdep", _LOCKDEP, _END_OF_STACK),
    _form("oops", _FAULT, _END_OF_TRACE),
    _form("bug", r"kernel BUG at ", _END_OF_TRACE),
    _form("bug", r"BUG: |BUG [\w.:-]+ \(", _END_OF_STACK),
    # The second is 6.19's.
    _form("warn", r"WARNING: (?:CPU: \d+ PID: \d+ at |.* at .*, CPU#\d+: )", _END_OF_TRACE),
    _Form("oops", _DIE, _END_OF_TRACE, _END_OF_TRACE),
)

_STAMP = re.compile(r"(?:<\d{1,3}>)?\[ *(\d+)\.+\d+\]+(?:\[+ *[TC]+\d+ *\]+)? ")
_BOOT = _pattern(r"Linux version \d")
_TASK = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{1,20}?) (?:Kdump: loaded )?"
    r"(?:Not tainted|Tainted: .*?) +(?P<release>\S+) #\d"
)
_HUNG = re.compile(r"INFO: task (?P<comm>.+):(?P<pid>\d+) ")

_GAP_SECONDS = 1
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
        self._time = 0
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
        key = _squeezed(said).lstrip()
        if _BOOT.match(key) and (stamp or not self._stamped):
            self._boot(stamped=stamp is not None)
        elif death.went_back(line):
            # Time begins there once more, and what is told again has happened again.
            self._boot(stamped=self._stamped)
        if stamp is not None:
            self._stamped = True
            self._pause(int(stamp[1]))
            self._kernel_line(line[stamp.start() :], said, key)
        elif not self._stamped:
            self._kernel_line(line, said, key)

    def _boot(self, *, stamped: bool | None) -> None:
        """Begin anew: a kernel boots, by kexec or after a reset, or goes back to a snapshot."""
        self._close()
        self._stamped = stamped
        self._time = 0
        self._told.clear()

    def _pause(self, time: int) -> None:
        if time > self._time + _GAP_SECONDS:
            self._close()
        self._time = max(self._time, time)

    def _kernel_line(self, line: str, said: str, key: str) -> None:
        """Take in a line of the kernel's.

        Args:
            line: All of it.
            said: What is behind its time stamp.
            key: That, squeezed.
        """
        before, self._before = self._before, line if _RULE.match(key) else ""
        if _CUT_HERE.match(key):
            self._begin(_Splat([line]))
            return
        form = next((each for each in _FORMS if each.starts.match(key)), None)
        if form is not None and not self._continues(key):
            if self._again(line):
                self._close()
                return
            self._headline(form, line, said, before)
        elif self._open is not None:
            self._open.lines.append(line)
        self._look(said, key)

    def _again(self, line: str) -> bool:
        """Whether a headline has been seen before, with the same time stamp."""
        known = _squeezed(line)
        again = bool(self._stamped) and known in self._told
        self._told.add(known)
        return again

    def _continues(self, key: str) -> bool:
        """Whether a line that could begin something is the `die` of what has begun already."""
        splat, die = self._open, _DIE.match(key)
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
        die = _DIE.match(_squeezed(said))
        splat.died = die[1] if die else ""

    def _look(self, said: str, key: str) -> None:
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
        splat.complete = splat.complete or splat.form.whole.match(key) is not None
        if splat.form.ends.match(key) or len(splat.lines) >= _LINES:
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


def as_logged(troubles: Iterable[Trouble], log: str) -> tuple[Trouble, ...]:
    """Return trouble that was read on a console with the texts of the kernel's own log, where that has it.

    A character that QEMU wrote twice makes a symbol's name, or its size, another one.

    Args:
        troubles: The trouble.
        log: What dmesg(1) prints, or would.
    """
    logged: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for each in find(log, stamped=True):
        logged[_sameness(each)].append(each.text)
    found = []
    for each in troubles:
        texts = logged[_sameness(each)]
        found.append(msgspec.structs.replace(each, text=texts.pop(0)) if texts else each)
    return tuple(found)


def _sameness(trouble: Trouble) -> tuple[str, ...]:
    """Return what is the same in both: a console has the caller behind the time stamp, a log may not."""
    first = trouble.text.partition("\n")[0]
    stamp = _STAMP.match(first)
    said = first[stamp.end() :] if stamp else first
    return trouble.kind, stamp[1] if stamp else "", _squeezed(said), _squeezed(trouble.headline)
