"""kmemleak's report: which of the leaks in it are a test's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmdebug.channel.shell import ExecResult
from vmdebug.errors import UsageError
from vmdebug.plugin import leaks

BOOT = """\
unreferenced object 0xffff888001ed0000 (size 1024):
  comm "swapper/0", pid 1, jiffies 4294667400
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc a0b1c2d3):
    __kmalloc+0x36/0x150
    do_one_initcall+0x4a/0x1c0
"""
TEST = """\
unreferenced object 0xffff8880026f2400 (size 32):
  comm "insmod", pid 57, jiffies 4294669321 (age 12.345s)
  hex dump (first 32 bytes):
    6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b a5  kkkkkkkkkkkkkkk.
  backtrace:
    [<00000000e5c5b1a4>] kmalloc_trace+0x26/0x90
    [<000000003c2a1f00>] 0xffffffffc0000030
"""
RECORDED = Path(__file__).with_name("splats") / "kmemleak-report.txt"
"""Of Linux 6.1, after the load and removal of its module kmemleak-test."""

UNKNOWN = "unreferenced object 0x1 (size 1):\n  a form of a later kernel\n"


def guest(status: int = 0, **said: str) -> Callable[..., ExecResult]:
    """Return an `exec` that answers by a word in the command."""

    def run(command: str, **_: Any) -> ExecResult:
        return ExecResult(next(text for word, text in said.items() if word in command), "", status)

    return run


@pytest.mark.parametrize(
    ("since", "found"),
    [(0, [BOOT, TEST]), (4294667401, [TEST]), (4294669321, [TEST]), (4294669322, [])],
)
def test_what_was_allocated_before_the_test_is_not_its_leak(since: int, found: list[str]) -> None:
    assert leaks.leaks(BOOT + TEST, since) == found


def test_the_report_of_a_real_kernel_is_read_record_by_record() -> None:
    report = RECORDED.read_text()
    found = leaks.leaks(report, 4294976840)
    assert "".join(found) == report
    assert len(found) == 24
    assert all('comm "insmod", pid 53' in record and "  backtrace:" in record for record in found)
    assert [len(leaks.leaks(report, 4294976840 + later)) for later in (1, 56, 154)] == [14, 4, 0]


def test_a_record_without_a_time_counts() -> None:
    assert leaks.leaks(UNKNOWN + BOOT, 4294669322) == [UNKNOWN]
    assert leaks.leaks("", 0) == []


def test_the_start_of_a_test_is_a_number_of_jiffies() -> None:
    assert leaks.now(guest(timer_list="4294669000\n")) == 4294669000
    assert leaks.now(guest(timer_list="sed: no such file\n")) == 0


def test_a_scan_reports_the_test_s_leaks_only() -> None:
    assert leaks.find(guest(kmemleak=BOOT + TEST), 4294669000) == TEST
    assert leaks.find(guest(kmemleak=BOOT), 4294669000) == ""


def test_a_kernel_without_kmemleak_is_said_to_be_one() -> None:
    with pytest.raises(UsageError, match="this guest does not have"):
        leaks.find(guest(status=3, kmemleak=""), 0)
