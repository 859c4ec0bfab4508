"""Where a search of the past goes."""

from __future__ import annotations

import vmd_windows
from hypothesis import given
from hypothesis import strategies as st
from vmd_windows import Hit, Scanned

STARTS = [0, 50, 100]


def test_near_windows_come_first() -> None:
    windows = list(vmd_windows.backward(140, STARTS, near=(4, 16)))

    assert windows == [(136, 140), (124, 136), (100, 124), (50, 100), (0, 50)]


def test_no_window_begins_before_its_snapshot() -> None:
    assert list(vmd_windows.backward(102, STARTS, near=(4, 16))) == [(100, 102), (86, 100), (50, 86), (0, 50)]


def test_there_is_nothing_before_the_begin() -> None:
    assert list(vmd_windows.backward(0, STARTS)) == []


@given(
    st.integers(0, 500), st.lists(st.integers(1, 400), unique=True), st.lists(st.integers(1, 99), max_size=3)
)
def test_windows_cover_the_past_without_a_gap(position: int, starts: list[int], near: list[int]) -> None:
    windows = list(vmd_windows.backward(position, [0, *sorted(starts)], near=near))

    assert [end for _, end in windows] == [position, *(begin for begin, _ in windows[:-1])][: len(windows)]
    assert not windows or windows[-1][0] == 0


@given(st.sets(st.integers(0, 299)), st.integers(1, 9))
def test_the_last_hit_is_found_with_any_limit(places: set[int], limit: int) -> None:
    def scan(begin: int, end: int) -> Scanned:
        hits = [Hit(each, 1) for each in sorted(places) if begin <= each < end]
        if len(hits) > limit:
            return Scanned(hits[:limit], hits[limit - 1].position + 1)
        return Scanned(hits, end)

    found = vmd_windows.last((0, 300), scan)

    assert (None if found is None else found.position) == (max(places) if places else None)
