"""The callers that a walk of frame pointers leaves out, found in the code of a small program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmdebug import arch, process
from vmdebug.deadline import Deadline
from vmdebug.trace.profile.callers import Callers
from vmdebug.trace.profile.naming import Namer
from vmdebug.trace.profile.raw import Collected, RawSample

SECONDS = 60.0
SLIDE = 0x2000000

SOURCE = """
__attribute__((noinline)) int leaf(int n) { __asm__ volatile(""); return n + 1; }
__attribute__((noinline)) int other(int n) { __asm__ volatile(""); return n + 2; }
__attribute__((noinline)) int middle(int n) { return other(leaf(n)) + 1; }
__attribute__((noinline)) int through(int (*f)(int)) { return f(1) + 1; }
int outer(int n) { return middle(n) + through(leaf) + 1; }
void _start(void) { outer(1); }
"""


class Small:
    """A program: where its functions are, and where its calls return to, after KASLR."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = process.run(
            ["objdump", "-d", "--no-show-raw-insn", path], deadline=Deadline.after(SECONDS)
        ).stdout
        self.functions: dict[str, int] = {}
        self.returns: dict[tuple[str, str], int] = {}
        inside, called = "", ""
        for line in text.splitlines():
            if begin := re.match(r"([0-9a-f]+) <(\w+)>:$", line):
                inside = begin[2]
                self.functions[inside] = int(begin[1], 16) + SLIDE
            elif at := re.match(r" +([0-9a-f]+):\t(?:call +(?:[0-9a-f]+ <(\w+)>|(\*)))?", line):
                if called:
                    self.returns[inside, called] = int(at[1], 16) + SLIDE
                called = at[2] or at[3] or ""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    path = tmp_path_factory.mktemp("callers") / "vmlinux"
    compiler: list[str | Path] = [
        "gcc",
        "-nostdlib",
        "-static",
        "-O1",
        "-fno-omit-frame-pointer",
        "-x",
        "c",
        "-",
        "-o",
        path,
    ]
    process.run(compiler, stdin=SOURCE.encode(), deadline=Deadline.after(SECONDS))
    return Small(path)


@pytest.fixture(scope="module")
def callers(small: Small) -> Callers:
    return Callers(small.path, SLIDE, arch.by_name("x86_64"))


def test_the_function_between_is_found(small: Small, callers: Callers) -> None:
    left_out = callers.left_out(small.functions["leaf"], small.returns["outer", "middle"])
    assert left_out == small.functions["middle"]


@pytest.mark.parametrize(
    ("leaf", "call"),
    [
        ("leaf", ("middle", "leaf")),  # nothing is left out
        ("through", ("outer", "middle")),  # the function that is called does not call the leaf
        ("leaf", ("through", "*")),  # an indirect call
    ],
)
def test_nothing_is_made_up(small: Small, callers: Callers, leaf: str, call: tuple[str, str]) -> None:
    assert callers.left_out(small.functions[leaf], small.returns[call]) is None


def test_addresses_outside_have_no_caller(small: Small, callers: Callers) -> None:
    assert callers.left_out(0x10, small.returns["outer", "middle"]) is None
    assert callers.left_out(small.functions["leaf"], 0x10) is None


def test_the_caller_is_in_the_profile(small: Small, callers: Callers) -> None:
    chain = (small.functions["leaf"], small.returns["outer", "middle"])
    sample = RawSample(time=1, cpu=0, pid=1, tid=1, comm="x", kernel=chain, user=(), weight=1)
    collected = Collected(
        samples=[sample],
        unit="ns",
        period=1,
        seconds=1.0,
        kallsyms="",
        mapping=lambda _pid, _address, _time: None,
        read_file=lambda _pid, _path: None,
    )
    profile = Namer(small.path, SLIDE, collected, callers=callers).profile(collector="c", vm="v", kernel="k")
    (stack,) = profile.folded()
    assert [each.name for each in stack] == ["x", "outer", "middle", "leaf"]
