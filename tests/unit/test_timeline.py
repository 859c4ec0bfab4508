"""Timelines of boots: the kernel's log, systemd's units, the page and the trace for Perfetto."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2

from vmdebug import cli
from vmdebug.timeline import log, page, perfetto, units
from vmdebug.timeline.boot import Boot, Step, differences

LOG = """\
[    0.500000] calling  tick_init+0x0/0x10 @ 1
[    0.503000] initcall tick_init+0x0/0x10 returned 0 after 10000 usecs
[    1.250000][    T1] calling  inet_init+0x0/0x2b3 @ 1
[    1.403100][    T1] initcall inet_init+0x0/0x2b3 returned 0 after 153050 usecs
[    1.500000] probe of 0000:00:02.0 returned 1 after 250 usecs
[    2.000000] initcall null_init+0x0/0x1000 [null_blk] returned -19 after 1500 usecs
[    2.100000] async_continuing @ 1 after 501 usec
[    2.500000] Run /init as init process
anything else
"""

SYSTEMD = """\
Id=a.service
After=b.service c.service never.service
InactiveExitTimestampMonotonic=3000000
ActiveEnterTimestampMonotonic=3500000

Id=b.service
After=
InactiveExitTimestampMonotonic=1000000
ActiveEnterTimestampMonotonic=1500000

Id=c.service
After=b.service
InactiveExitTimestampMonotonic=1600000
ActiveEnterTimestampMonotonic=2900000

Id=never.service
InactiveExitTimestampMonotonic=0
ActiveEnterTimestampMonotonic=0
"""


def step(name: str, start: float, seconds: float) -> Step:
    return Step(kind="initcall", name=name, start=start, seconds=seconds)


def test_the_log_has_initcalls_modules_probes_waits_and_init() -> None:
    steps, marks = log.parse(LOG.splitlines())
    found = [
        (each.kind, each.name, round(each.start, 6), each.seconds, each.owner, each.result) for each in steps
    ]
    assert found == [
        ("initcall", "tick_init", 0.5, 0.003, "", 0),
        ("initcall", "inet_init", 1.25005, 0.15305, "", 0),
        ("probe", "0000:00:02.0", 1.49975, 0.00025, "", 1),
        ("module", "null_init", 1.9985, 0.0015, "null_blk", -19),
        ("wait", "asynchronous calls (task 1)", 2.099499, 0.000501, "", 0),
    ]
    assert marks == {"run /init": 2.5}


def test_a_unit_waited_for_the_one_that_was_ready_last() -> None:
    found = [(each.name, each.start, each.seconds, each.waited_for) for each in units.parse(SYSTEMD)]
    assert found == [
        ("b.service", 1.0, 0.5, ""),
        ("c.service", 1.6, 1.3, "b.service"),
        ("a.service", 3.0, 0.5, "c.service"),
    ]


def test_without_systemd_there_are_no_units() -> None:
    assert units.parse("") == []


ONE = Boot(
    name="<one>", kernel="6.1", steps=(step("a", 0.1, 0.5), step("b", 0.6, 0.1)), marks={"run /init": 1.0}
)
TWO = Boot(name="two", kernel="6.2", steps=(step("a", 0.1, 0.2), step("c", 0.3, 0.05)), marks={})


def test_the_largest_difference_is_the_first() -> None:
    found = [(each.name, each.before, each.after) for each in differences(ONE, TWO)]
    assert found == [("a", 0.5, 0.2), ("b", 0.1, None), ("c", None, 0.05)]


def test_the_page_of_two_boots_has_both_and_their_differences() -> None:
    text = page.render([ONE, TWO])
    assert text.count('<svg class="boot"') == 2
    assert "&lt;one&gt;" in text
    assert (
        '<td class="number">-300 ms</td><td class="number">500 ms</td><td class="number">200 ms</td>' in text
    )
    assert "Longest steps" in page.render([ONE])


def test_slices_of_a_track_do_not_overlap() -> None:
    overlapping = Boot(
        name="x", kernel="", steps=(step("a", 0.0, 0.5), step("b", 0.2, 0.1), step("c", 0.6, 0.1)), marks={}
    )
    trace = perfetto_trace_pb2.Trace.FromString(perfetto.render([overlapping, TWO]))
    tracks = {each.track_descriptor.uuid for each in trace.packet if each.HasField("track_descriptor")}
    events = [each for each in trace.packet if each.HasField("track_event")]
    by_name = {
        each.track_event.name: each.track_event.track_uuid for each in events[:6] if each.track_event.name
    }
    assert by_name["a"] == by_name["c"] != by_name["b"]
    assert {each.track_event.track_uuid for each in events} <= tracks
    assert [each.timestamp for each in events[:2]] == [0, 500_000_000]


@pytest.fixture
def nothing_boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with a file that is not to be written, without the package perfetto."""

    def boot(*_: object, **__: object) -> NoReturn:
        pytest.fail("a guest was booted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vmdebug.session.start", boot)
    monkeypatch.setitem(sys.modules, "perfetto", None)
    for name in [each for each in sys.modules if each.startswith("perfetto.")]:
        monkeypatch.delitem(sys.modules, name)
    Path("kept").touch()
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name != "kept")


@pytest.mark.usefixtures("nothing_boots")
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["builtin", "-o", "none/boot.html"], 2, "there is no directory"),
        (["builtin", "--perfetto", "."], 2, "is a directory"),
        (["builtin", "-o", "kept"], 3, "cannot write kept: it is not permitted"),
        (["builtin", "--perfetto", "boot.pftrace"], 3, "--perfetto needs the Python package perfetto, which"),
        (["builtin", "./no-such-guest"], 2, "no-such-guest"),
        (["builtin", "builtin", "builtin"], 2, "takes one or two guests, not 3"),
    ],
)
def test_what_can_be_known_is_said_before_a_guest_boots(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["boot-timeline", *words]) == status
    assert message in capsys.readouterr().err
