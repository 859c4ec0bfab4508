"""The table of headlines against the source of the builtin kernel; `tests/unit` has newer kernels'."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.kernelheadlines import said, unknown
from vmdebug import sources
from vmdebug.channel.log.headlines import FORMS
from vmdebug.deadline import Deadline
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent


@pytest.fixture(scope="module")
def source() -> Path:
    spec = sources.resolve(GuestOptions(source="builtin"), report=silent, deadline=Deadline.after(300))
    assert spec.kernel.vmlinux is not None
    return (spec.kernel.vmlinux.parent / "source").resolve()


def test_each_headline_of_the_source_is_known_or_is_no_trouble(source: Path) -> None:
    texts = sorted({text for _, text in said(source)})
    assert len(texts) > 200
    assert unknown(texts) == []


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
    "net/sched/sch_generic.c": "NETDEV WATCHDOG: ",
    "fs/sysfs/dir.c": "cannot create duplicate filename",
    "kernel/panic.c": "Kernel panic - not syncing",
    "mm/slub.c": "BUG %s (%s): ",
}
"""Headlines that start with none of these words, as their source has them."""


@pytest.mark.parametrize("name", WITHOUT_PREFIX)
def test_a_headline_of_another_kind_is_still_that_of_its_source(source: Path, name: str) -> None:
    assert WITHOUT_PREFIX[name] in (source / name).read_text()
    assert any(name in each.source or Path(name).name in each.source for each in FORMS)
