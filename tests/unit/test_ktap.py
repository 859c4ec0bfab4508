"""KTAP, as kselftests and KUnit of real kernels print it, becomes a tree of test points."""

from __future__ import annotations

import textwrap

from hypothesis import given
from hypothesis import strategies as st

from vmdebug.channel.log.trouble import Kind, Trouble
from vmdebug.ktests import ktap, kunit
from vmdebug.ktests.attribution import attributed
from vmdebug.ktests.results import KernelTestPoint, KernelTestResults

KUNIT = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: vmdebug-failing
    1..5
    ok 1 sum_is_right
    # sum_is_wrong: EXPECTATION FAILED at lib/failing_kunit.c:13
    Expected 1 + 1 == 3, but
        1 + 1 == 2
    not ok 2 sum_is_wrong
    ok 3 has_no_device # SKIP no such device
    ok 4 warns
        KTAP version 1
        # Subtest: is_even
        ok 1 number 2
    # is_even: EXPECTATION FAILED at lib/failing_kunit.c:39
    3 is odd
        not ok 2 number 3
    # is_even: pass:1 fail:1 skip:0 total:2
    not ok 5 is_even
# vmdebug-failing: pass:2 fail:2 skip:1 total:5
not ok 1 vmdebug-failing
"""

LOG = """\
[    0.001000] Linux version 6.1.192-vmdebug
ok 9 this is no KTAP of the kernel
[   12.570000]     KTAP version 1
[   12.570500]     # Subtest: own
[   12.570634][    T1]     1..2
[   12.582386]     ok 1 first
[   12.595842] ------------[ cut here ]------------
[   12.596132] WARNING: CPU: 0 PID: 64 at own.c:23 second+0x6/0x10
[   12.600000]     ok 2 second
[   12.637483] ok 1 own
[   20.000000] something else
[   40.000000]     # Subtest: crashed
[   40.000100]     1..3
[   40.000200]     ok 1 alive
[   40.000300] BUG: kernel NULL pointer dereference, address: 0000000000000000
"""


def read(text: str) -> tuple[KernelTestPoint, ...]:
    return ktap.read(textwrap.dedent(text).splitlines())


def told(points: tuple[KernelTestPoint, ...]) -> list[tuple[str, str]]:
    judged = KernelTestResults(framework="", points=points).judged()
    return [(path, point.status) for path, point in judged]


def test_a_suite_of_kunit_with_a_parameterized_test() -> None:
    (suite,) = read(KUNIT)
    assert (suite.name, suite.status, suite.number, len(suite.points)) == ("vmdebug-failing", "failed", 1, 5)
    assert told((suite,)) == [
        ("vmdebug-failing: sum_is_right", "passed"),
        ("vmdebug-failing: sum_is_wrong", "failed"),
        ("vmdebug-failing: has_no_device", "skipped"),
        ("vmdebug-failing: warns", "passed"),
        ("vmdebug-failing: is_even: number 2", "passed"),
        ("vmdebug-failing: is_even: number 3", "failed"),
    ]
    wrong, skipped = suite.points[1:3]
    assert (wrong.place, skipped.reason) == ("lib/failing_kunit.c:13", "no such device")
    assert wrong.diagnostics[1:] == ("Expected 1 + 1 == 3, but", "1 + 1 == 2")
    assert wrong.explained().startswith(
        "failed\nsum_is_wrong: EXPECTATION FAILED at lib/failing_kunit.c:13\n"
    )
    assert suite.points[4].points[1].place == "lib/failing_kunit.c:39"
    counts = KernelTestResults(framework="kunit", points=(suite,)).counts
    assert str(counts) == "3 passed, 2 failed, 1 skipped"


def test_directives() -> None:
    points = read(
        """\
        TAP version 13
        1..6
        ok 1 - first # SKIP needs root
        ok 2 # SKIP CLOCK_TAI
        ok 3 third # XFAIL known
        not ok 4 fourth # TODO later
        not ok 5 fifth # TIMEOUT 45 seconds
        ok 6
        """
    )
    assert [(point.name, point.status, point.reason) for point in points] == [
        ("first", "skipped", "needs root"),
        ("CLOCK_TAI", "skipped", ""),
        ("third", "xfailed", "known"),
        ("fourth", "xfailed", "later"),
        ("fifth", "failed", "TIMEOUT 45 seconds"),
        ("test 6", "passed", ""),
    ]


def test_what_only_looks_like_a_result_is_text() -> None:
    (point,) = read("1..1\nokay, here we go\nok without a number\nok2go\n# main.c:4: ok 7\nok 1 it\n")
    assert point.diagnostics == ("okay, here we go", "ok without a number", "ok2go", "main.c:4: ok 7")


def test_several_documents_may_follow_each_other() -> None:
    points = read("TAP version 13\n1..1\nok 1 a\nTAP version 13\n1..2\nok 1 a\nnot ok 2 b\n")
    assert [(point.number, point.name) for point in points] == [(1, "a"), (1, "a"), (2, "b")]


def test_points_of_the_plan_that_did_not_come_are_missing() -> None:
    assert told(read("TAP version 13\n1..4\nok 1 a\n# then a crash\n")) == [
        ("a", "passed"),
        ("point 2 to 4 of 4", "missing"),
    ]
    (suite,) = read("KTAP version 1\n1..1\n    # Subtest: crashed\n    1..2\n    ok 1 a\nKernel panic\n")
    assert (suite.name, suite.status) == ("crashed", "missing")
    assert told((suite,)) == [("crashed: a", "passed"), ("crashed: point 2 of 2", "missing")]
    assert suite.points[1].diagnostics == ("Kernel panic",)


def test_a_test_that_says_that_it_passed_may_have_fewer_points_than_planned() -> None:
    (point,) = read("1..1\n  KTAP version 1\n  1..3\n  ok 1 a\nok 1 group\n")
    assert point.ok
    assert point.diagnostics == ("its plan has 2 more points, which did not come",)


def test_the_log_has_times_and_each_splat_belongs_to_the_test_that_ran() -> None:
    own, crashed = ktap.read_log(LOG)
    assert [(each.ended, each.duration) for each in own.points] == [(12.582386, 0.012386), (12.6, 0.017614)]
    assert own.duration == 0.067483
    assert told((crashed,)) == [("crashed: alive", "passed"), ("crashed: point 2 to 3 of 3", "missing")]
    kinds: list[tuple[Kind, str]] = [
        ("warn", "12.596132"),
        ("warn", "20.5"),
        ("kunit", "12.6"),
        ("bug", "40.0003"),
    ]
    splats = [Trouble(kind=kind, headline=kind, text="", complete=True, time=time) for kind, time in kinds]
    first, second = attributed((own, crashed), splats, all_ours=False)
    assert [[each.kind for each in point.troubles] for point in first.points] == [[], ["warn"]]
    assert not first.ok
    assert [each.kind for each in second.points[-1].troubles] == ["bug"]
    assert sum(map(len, (first.troubles, second.troubles, first.points[0].troubles))) == 0
    _, last = attributed((own, own), splats[1:2], all_ours=True)
    assert [each.time for each in last.troubles] == ["20.5"]


def test_debugfs_gets_times_from_the_log_and_the_points_that_it_has_cut_off() -> None:
    (logged, _) = ktap.read_log(LOG)
    (whole,) = read("1..1\n    # Subtest: own\n    1..2\n    ok 1 first\n    ok 2 second\nok 1 own\n")
    assert kunit.with_log(whole, logged).points[1].duration == 0.017614
    (cut,) = read("1..1\n    # Subtest: own\n    1..2\n    ok 1 first\nok 1 own\n")
    assert kunit.with_log(cut, logged) == logged
    assert kunit.with_log(whole, None) == whole


def test_allowed_kinds_of_trouble_are_no_failure() -> None:
    splat = Trouble(kind="warn", headline="WARNING", text="", complete=True)
    point = KernelTestPoint(name="a", status="passed", troubles=(splat,))
    results = KernelTestResults(framework="kunit", points=(point,))
    assert (results.ok, results.counts.failed, results.troubles()) == (False, 1, (splat,))
    assert results.allowing({"warn"}).ok


@given(
    st.lists(st.sampled_from([*KUNIT.splitlines(), *LOG.splitlines(), "", "\t", "ok 1", "1..0 # SKIP no"]))
)
def test_any_order_of_lines_is_read(lines: list[str]) -> None:
    told(ktap.read(lines))
    ktap.read_log("\n".join(lines))
