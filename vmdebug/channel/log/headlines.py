"""The table of headlines: the first lines of the kernel's reports of trouble.

Each row names the kernel source that prints it. The texts are from Linux 4.19 to 7.2, and tests compare them
with the sources of 6.1, 6.12 and 7.2. The table has the forms of all these kernels, because vmdebug does not
compare versions. A line that starts with `WARNING: ` or `INFO: ` and matches no row is only advice, for
example about a mitigation or a boot loader.

QEMU's log of a console may contain a character twice, so the patterns match text in which `squeezed` has
reduced every run of one character to one.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

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
    "page_alloc",
    "oom",
    "kmemleak",
    "refcount",
    "msr",
    "irq",
    "mce",
    "sysfs",
    "kunit",
]
"""bug: BUG(), and headlines with `BUG:` that have no kind of their own. lockup: soft, hard, of a
workqueue, or of a network device's queue.
refcount: a leaked reference: to a network device, to inodes of a file system, or one that ref_tracker
reports.
irq: an unhandled interrupt or NMI. kunit: a KUnit test that is `not ok`."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_RUN = re.compile(r"(.)\1+")


def squeezed(text: str) -> str:
    """Return text with every run of one character reduced to one."""
    return _RUN.sub(r"\1", text)


def pattern(words: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """Return a pattern for squeezed text; its punctuation must already be squeezed."""
    return re.compile(re.sub(r"([A-Za-z])\1", r"\1", words), flags)


RULE = pattern(r"=$")
END_OF_TRACE = pattern(r"-\[ end trace ")
_END_OF_PANIC = pattern(r"-\[ end Kernel panic")
_END_OF_STACK = pattern(r"</TASK>")  # since 5.16; after the stacks <IRQ> and <NMI>, the task's stack follows
_END_OF_OOM = pattern(
    r"(?:Memory cgroup o|O)ut of memory(?: \(oom_kill_allocating_task\))?"
    r"(?:: Killed process| and no killable)"
)
_ONE_LINE = pattern(r"")

DIE = pattern(
    r"(?:(?:Oops|Internal error|Kernel BUG\b)[^\[]*|[a-z][\w ,()-]+: [0-9a-f]+ )\[#(\d+)\]", re.IGNORECASE
)
"""The line that `die` of arch/*/kernel prints: the headline of a fault without one of its own, else below
it."""


class Form(NamedTuple):
    """The form of a splat.

    Args:
        kind: Its kind.
        starts: Matches its headline, from the start of the line.
        ends: Matches its last line.
        source: The kernel source that prints the headline.
        whole: Matches the line that completes its important part.
        alone: Whether the line is not a headline if it is the message of a WARN().
    """

    kind: Kind
    starts: re.Pattern[str]
    ends: re.Pattern[str]
    source: str
    whole: re.Pattern[str]
    alone: bool = False


def _form(
    kind: Kind,
    starts: str,
    ends: re.Pattern[str],
    source: str,
    *,
    whole: re.Pattern[str] | None = None,
    alone: bool = False,
) -> Form:
    return Form(kind, pattern(starts), ends, source, whole or ends, alone)


_UBSAN_END = pattern(f"{RULE.pattern}|{END_OF_TRACE.pattern}")
"""Newer kernels end it like a warning."""

_PANICS = (
    # QEMU's pvpanic device stops a guest after the stack, before the last line.
    _form("panic", r"Kernel panic - not syncing", _END_OF_PANIC, "kernel/panic.c", whole=_END_OF_STACK),
)

_CHECKERS = (
    _form("kasan", r"BUG: KASAN: ", RULE, "mm/kasan/report.c"),
    _form("kcsan", r"BUG: KCSAN: ", RULE, "kernel/kcsan/report.c"),
    _form("kfence", r"BUG: KFENCE: ", RULE, "mm/kfence/report.c"),
    _form("kmsan", r"BUG: KMSAN: ", RULE, "mm/kmsan/report.c"),
    _form("ubsan", r"UBSAN: .+", _UBSAN_END, "lib/ubsan.c"),
    _form("kmemleak", r"kmemleak: \d+ new suspected memory leaks", _ONE_LINE, "mm/kmemleak.c"),
    _form("kunit", r"\s*not ok \d+ ", _ONE_LINE, "lib/kunit/test.c"),
)

_HANGS = (
    _form("lockup", r"(?:[\w ]+: )?BUG: soft lockup", _END_OF_STACK, "kernel/watchdog.c"),
    _form("lockup", r"(?:[\w ]+: )?.*hard LOCKUP", _END_OF_STACK, "kernel/watchdog_hld.c"),
    _form("lockup", r"(?:[\w ]+: )?BUG: workqueue lockup", _END_OF_STACK, "kernel/workqueue.c"),
    # Until Linux 6.4 it was the message of a WARN().
    _form(
        "lockup",
        r".*NETDEV WATCHDOG: .*transmit queue \d+ timed out",
        _ONE_LINE,
        "net/sched/sch_generic.c",
        alone=True,
    ),
    _form(
        "rcu_stall",
        r"(?:rcu: )?INFO: \S+ (?:self-)?detected (?:expedited )?stalls?\b",
        _END_OF_STACK,
        "kernel/rcu/tree_stall.h, tree_exp.h, tasks.h",
    ),
    _form(
        "hung_task",
        r"INFO: task .*:\d+ .*blocked .*for more than \d+ seconds",
        _END_OF_STACK,
        "kernel/hung_task.c",
    ),
    _form(
        "hung_task", r"INFO: The task .*:\d+ has been waiting for writeback ", _ONE_LINE, "fs/fs-writeback.c"
    ),
)

_LOCKDEP = (
    _form(
        "lockdep",
        r"(?:WARNING|INFO): possible (?:circular|recursive|irq lock|reason: )"
        r"|WARNING: .*-unsafe lock order detected|WARNING: .* still has locks held"
        r"|WARNING: (?:inconsistent lock state|Nested lock was not taken|bad unlock balance|bad contention)"
        r"|WARNING: (?:held lock freed|lock held when returning|chain_key collision)"
        r"|INFO: trying to register non-static key|\[ BUG: |BUG: key \S+ has not been registered"
        r"|BUG: (?:MAX_LOCK|MAX_STACK_TRACE_ENTRIES|looking up invalid subclass)",
        _END_OF_STACK,
        "kernel/locking/lockdep.c",
    ),
    _form(
        "lockdep",
        r"WARNING: suspicious RCU usage|INFO: suspicious RCU usage",
        _END_OF_STACK,
        "kernel/rcu/update.c, kernel/locking/lockdep.c",
    ),
)

_FAULTS = (
    _form(
        "oops",
        r"BUG: (?:kernel NULL pointer dereference|[uU]nable to handle)"
        r"|kernel tried to execute NX-protected page|unable to execute userspace code"
        r"|Unable to handle kernel |Fixing recursive fault but reboot is needed",
        END_OF_TRACE,
        "arch/*/mm/fault.c, kernel/exit.c",
    ),
    _form(
        "oops",
        r"BUG: (?:\S+ )?stack guard page|Insufficient stack space to handle exception"
        r"|(?:Oops: )?general protection fault|(?:traps: )?PANIC: double fault|Bad mode in ",
        END_OF_TRACE,
        "arch/*/kernel/traps.c",
    ),
)

_BUGS = (
    _form("bug", r"kernel BUG at |BUG: failure at ", END_OF_TRACE, "lib/bug.c, include/asm-generic/bug.h"),
    _form("bug", r"BUG [\w.:-]+ \(", _END_OF_STACK, "mm/slub.c"),
    # sched, spinlock_debug, page_alloc, memory, fork, dcache, preemption, timers, drivers.
    _form("bug", r"BUG: ?", _END_OF_STACK, "every other BUG: of the tree"),
    _form("bug", r"(?:softirq: )?huh, entered (?:softirq|\d+)", _ONE_LINE, "kernel/softirq.c"),
)

_WARNINGS = (
    # The second form is that of 6.19; without CONFIG_DEBUG_BUGVERBOSE it has no file.
    _form(
        "warn",
        r"WARNING: (?:CPU: \d+ PID: \d+ at |(?:.* )?at .*, CPU#\d+: )",
        END_OF_TRACE,
        "kernel/panic.c, lib/bug.c",
    ),
    _form(
        "warn",
        r"WARNING: (?:stack recursion on|kernel stack (?:regs|frame pointer) |Bad or missing \.orc"
        r"|Corrupt \.orc|bad lookup (?:idx|value)|can't access registers|unrecognized unwind)",
        _ONE_LINE,
        "arch/*/kernel/unwind_*.c, dumpstack.c",
    ),
)

_OTHERS = (
    _form(
        "page_alloc",
        r".*: (?:page allocation failure|page allocation stalls|vmalloc error: size )"
        r"|.*SLUB: Unable to allocate memory on ",
        _END_OF_STACK,
        "mm/page_alloc.c, mm/vmalloc.c, mm/slub.c",
        alone=True,
    ),
    _form("oom", r".* invoked oom-killer: ", _END_OF_OOM, "mm/oom_kill.c", alone=True),
    _form("oom", _END_OF_OOM.pattern, _ONE_LINE, "mm/oom_kill.c", alone=True),
    _form(
        "refcount",
        r"unregister_netdevice: waiting for .* to become free",
        _ONE_LINE,
        "net/core/dev.c",
        alone=True,
    ),
    _form("refcount", r"VFS: Busy inodes after unmount of ", _ONE_LINE, "fs/super.c", alone=True),
    _form(
        "refcount", r"(?:ref_tracker: )?.*leaked reference\.", _END_OF_STACK, "lib/ref_tracker.c", alone=True
    ),
    _form(
        "msr",
        r"unchecked MSR access error: ",
        _END_OF_STACK,
        "arch/*/mm/extable.c",
        alone=True,
    ),
    _form("irq", r"irq \d+: nobody cared", _END_OF_STACK, "kernel/irq/spurious.c", alone=True),
    _form(
        "irq",
        r".*: \d+\.\d+ No irq handler for vector|Uhhuh\. NMI received|NMI: (?:PCI system error|IOCK error)",
        _ONE_LINE,
        "arch/*/kernel/irq.c, nmi.c",
        alone=True,
    ),
    _form(
        "mce",
        r"(?:mce: )?\[Hardware Error\]: CPU \d+: Machine Check",
        _ONE_LINE,
        "arch/*/kernel/cpu/mce/core.c",
        alone=True,
    ),
    _form(
        "sysfs",
        r"sysfs: cannot create duplicate filename|kobject_add_internal failed for",
        _END_OF_STACK,
        "fs/sysfs/dir.c, lib/kobject.c",
        alone=True,
    ),
)

FORMS: tuple[Form, ...] = (
    *_PANICS,
    *_CHECKERS,
    *_HANGS,
    *_LOCKDEP,
    *_FAULTS,
    *_BUGS,
    *_WARNINGS,
    *_OTHERS,
    Form("oops", DIE, END_OF_TRACE, "arch/*/kernel/dumpstack.c, traps.c: die()", END_OF_TRACE),
)
"""All rows; the first one that matches a line counts."""

_ANY = re.compile("|".join(f"(?:{each.starts.pattern})" for each in FORMS[:-1]))


def form(key: str) -> Form | None:
    """Return the row of a headline; None for any other line.

    Args:
        key: The line without its time stamp, squeezed.
    """
    if _ANY.match(key) is None and DIE.match(key) is None:
        return None
    return next(each for each in FORMS if each.starts.match(key))
