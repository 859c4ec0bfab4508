"""The table of headlines against the kernel's source: each `BUG:`, `WARNING:`, `INFO:`, `UBSAN:` in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdebug import sources
from vmdebug.channel.log.headlines import FORMS, form, squeezed
from vmdebug.deadline import Deadline
from vmdebug.guest import GuestOptions
from vmdebug.progress import silent

PARTS = (
    "kernel",
    "mm",
    "lib",
    "fs",
    "block",
    "init",
    "security",
    "net/core",
    "arch/x86",
    "arch/arm64",
    "include",
)
_SAID = re.compile(r'"(?:\[ )?((?:BUG|WARNING|INFO|UBSAN): ?[^"]*)"')

SAMPLES = {"s": "word", "c": "x", "d": "7", "i": "7", "u": "7", "x": "7f", "X": "7F", "p": "00000000f4a2"}
_DIRECTIVE = re.compile(
    r"%[-+ #0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh|h|ll|l|z|t)?([a-zA-Z])(?:[A-Za-z]+(?=\W|$))?"
)

NOT_TROUBLE = {
    "the end of another report, or its absence": r"INFO: (?:lockdep is turned off|Stall ended before)",
    "what a stop in the debugger, or emulation, makes of the time": (
        r"INFO: (?:NMI handler|timekeeping)|WARNING: (?:timekeeping|Underflow|Overflow)"
    ),
    "part of a text": r"(?:INFO|WARNING): ?(?:%s|%pV)?(?:\\n)?$|INFO: (?:recovery|rcu_tasks_trace detected)",
    "advice on a mitigation": (
        r"WARNING: [^%]*(?:mitigation|vulnerable|IBPB|UNRET|SRSO|leak|eBPF)|WARNING: See https"
    ),
    "advice on the machine or its boot": (
        r"WARNING: (?:This combination|Ancient|Forcing|PAE|BIOS|bogus|SMP|polling|mapping|x1-x3)"
        r"|WARNING: (?:'bootconfig'|Absolute relocations)"
    ),
    "advice on settings": r"WARNING: (?:workqueue cpumask|Domain|FUNCTION TRACING)",
    "advice of a driver or a file system": (
        r"WARNING: (?:RTT|Requested queue|Reset corrupted|partial inode|trying to remove)"
        r"|WARNING: (?:the dlm|the lkb|The mand)"
    ),
    "said in kdb": r"WARNING: no (?:task|process) for cpu",
}
"""Why a text of the source is no trouble, and which are those."""


@pytest.fixture(scope="module")
def source() -> Path:
    spec = sources.resolve(GuestOptions(source="builtin"), report=silent, deadline=Deadline.after(300))
    assert spec.kernel.vmlinux is not None
    return (spec.kernel.vmlinux.parent / "source").resolve()


def said(source: Path) -> Iterator[str]:
    for part in PARTS:
        for path in (source / part).rglob("*.[ch]"):
            for line in path.read_text(errors="replace").splitlines():
                # Comments, and what a tool that runs on the build machine prints.
                if "fprintf" not in line and not line.lstrip().startswith(("*", "/*", "//")):
                    yield from _SAID.findall(line)


def shown(text: str) -> str:
    """Return a format as the kernel may print it."""
    return _DIRECTIVE.sub(lambda found: SAMPLES.get(found[1], "word"), text).replace("\\n", "")


def test_each_headline_of_the_source_is_known_or_is_no_trouble(source: Path) -> None:
    texts = sorted(set(said(source)))
    assert len(texts) > 80
    known = re.compile("|".join(NOT_TROUBLE.values()))
    unknown = [text for text in texts if form(squeezed(shown(text))) is None and not known.match(text)]
    assert unknown == []


def test_each_row_names_a_source_that_there_is(source: Path) -> None:
    missing = []
    for each in FORMS:
        first = each.source.split(",")[0].split(":")[0].split()[0]
        if "/" in first and not any(source.glob(first)):
            missing.append(each.source)
    assert missing == []


WITHOUT_PREFIX = {
    "mm/page_alloc.c": "page allocation failure: order:%u",
    "mm/oom_kill.c": "%s invoked oom-killer: ",
    "mm/kmemleak.c": "%d new suspected memory leaks",
    "arch/x86/mm/extable.c": "unchecked MSR access error: ",
    "net/core/dev.c": "unregister_netdevice: waiting for %s to become free",
    "fs/super.c": "VFS: Busy inodes after unmount of",
    "lib/ref_tracker.c": "leaked reference.",
    "kernel/irq/spurious.c": "nobody cared",
    "arch/x86/kernel/irq.c": "No irq handler for vector",
    "arch/x86/kernel/nmi.c": "Uhhuh. NMI received",
    "kernel/softirq.c": "huh, entered softirq",
    "fs/sysfs/dir.c": "cannot create duplicate filename",
    "kernel/panic.c": "Kernel panic - not syncing",
    "mm/slub.c": "BUG %s (%s): ",
}
"""Headlines that start with none of these words, as their source has them."""


@pytest.mark.parametrize("name", WITHOUT_PREFIX)
def test_a_headline_of_another_kind_is_still_that_of_its_source(source: Path, name: str) -> None:
    assert WITHOUT_PREFIX[name] in (source / name).read_text()
    assert any(name in each.source or Path(name).name in each.source for each in FORMS)
