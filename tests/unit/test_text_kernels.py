"""Which kernel a text is of, and whether a vmlinux is that kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug.debugger import text_kernels
from vmdebug.debugger.text_kernels import Said
from vmdebug.kimage import Vmlinux

BUILD_ID = "aa23f7a1231c229de205662d5a9e0d4c580f19a1"
BANNER = "6.1.192 (root@vm) (gcc 12, ld 2.40) #7 SMP PREEMPT Thu Jan  1 00:00:00 UTC 1970"
OURS = Vmlinux(build_id=BUILD_ID, banner=BANNER, arch="x86_64")
SPLATS = Path(__file__).parent / "splats"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"[    0.0] Linux version {BANNER}", Said("6.1.192", "#7", " ".join(BANNER.split()))),
        ("CPU: 0 PID: 40 Comm: sh Not tainted 6.1.192 #7 ", Said("6.1.192", "#7")),
        (
            "CPU: 0 UID: 0 PID: 40 Comm: a b Not tainted 6.12.0-rc1+ #7 PREEMPT(full) ",
            Said("6.12.0-rc1+", "#7"),
        ),
        ("CPU: 1 PID: 4 Comm: x Tainted: G        W   E      6.1.192 #7", Said("6.1.192", "#7")),
        ("CPU: 1 PID: 4 Comm: x Kdump: loaded Tainted: G W 6.1.192 #1-NixOS", Said("6.1.192", "#1-NixOS")),
        (
            f"CPU: 1 PID: 4 Comm: x Not tainted 5.13.0 #10 {BUILD_ID}",
            Said("5.13.0", "#10", build_id=BUILD_ID),
        ),
    ],
)
def test_each_form_of_the_lines_that_name_a_kernel(line: str, expected: Said) -> None:
    assert text_kernels.said(f"{line}\n") == (expected,)


@pytest.mark.parametrize("text", ["", "Linux version 4.0 or newer is needed", "CPU: 0 PID: 1", "6.1.192 #7"])
def test_other_lines_name_none(text: str) -> None:
    assert text_kernels.said(text) == ()


def test_a_kernel_is_named_once_however_often_it_says_so() -> None:
    names = text_kernels.said((SPLATS / "warn.log").read_text())
    assert [(each.release, each.number, bool(each.banner)) for each in names] == [
        ("6.1.192-vmdebug", "#1", True),
        ("6.1.192-vmdebug", "#1", False),
    ]


@pytest.mark.parametrize(
    ("kernel", "difference"),
    [
        (Said("6.1.192", "#7", build_id=BUILD_ID), ""),
        (Said("6.1.192", "#7", build_id="12" * 20), f"build-id {'12' * 20}, not {BUILD_ID}"),
        (Said("6.1.192", "#7"), ""),
        (Said("6.1.193", "#7"), "release 6.1.193, not 6.1.192"),
        (Said("6.1.192", "#8"), "build #8, not #7"),
        (Said("6.1.192", "#7", " ".join(BANNER.split())), ""),
        (Said("6.1.192", "", " ".join(BANNER.split())[:30]), ""),  # a mail program has wrapped it
        (Said("6.1.192", "#7", "6.1.192 (me@here) (gcc) #7"), "version 6.1.192 (me@here) (gcc) #7, not "),
    ],
)
def test_the_most_specific_property_decides(kernel: Said, difference: str) -> None:
    found = text_kernels.difference(kernel, OURS)
    assert found.startswith(difference)
    assert bool(found) == bool(difference)


def test_a_text_without_a_kernel_may_be_of_any() -> None:
    assert not text_kernels.is_other((), OURS)
    assert text_kernels.is_other((Said("5.0"),), OURS)
    assert not text_kernels.is_other((Said("5.0"), Said("6.1.192")), OURS)


def test_a_text_is_split_before_each_boot() -> None:
    first, second = f"[ 0.0] Linux version {BANNER}\nmore\n", f"> [ 0.0] Linux version {BANNER}\nlast"
    assert text_kernels.boots(first + second) == [first, second]
    assert text_kernels.boots(f"firmware\n{first}") == ["firmware\n", first]
    assert text_kernels.boots("no banner\n") == ["no banner\n"]
    assert text_kernels.boots("") == []
