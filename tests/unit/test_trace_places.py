"""Patterns, lines and calls of a small program as places of a trace, and the list of its places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdebug import arch, process
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.kimage import symbols
from vmdebug.trace.expressions import listing, resolving
from vmdebug.trace.expressions.compiled import compiled
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.probe import Probe, Wanted

X86_64 = arch.by_name("x86_64")
OUT = "__attribute__((noipa)) "

SOURCE = f"""
static volatile long sink;
long __tracepoint_thing;
{OUT}void vfs_leaf(long x) {{ sink += x; }}
{OUT}void vfs_inner(int count)
{{
    sink++;
    vfs_leaf(count);
    sink++;
}}
{OUT}long outer(long size)
{{
    vfs_inner(size);
    return size + sink;
}}
void _start(void) {{ outer(__tracepoint_thing); }}
"""


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("places") / "vmlinux"
    source = made.parent / "fs" / "traced.c"
    source.parent.mkdir()
    source.write_text(SOURCE)
    words = ("gcc", "-O2", "-g", "-nostdlib", "-static", "-w", "-o", made, source)
    process.run(words, deadline=Deadline.after(60))
    return made


@pytest.fixture
def kernel(vmlinux: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(vmlinux.parent / "cache"))
    with Kernel(vmlinux) as opened:
        yield opened


def places(kernel: Kernel, *where: str, callees: int = 0) -> list[str]:
    wanted = Wanted(tuple(Probe(each) for each in where), callees=callees)
    return [each.where for each in resolving.resolved(wanted, kernel).probes]


def test_a_pattern_is_the_functions_that_it_matches(kernel: Kernel) -> None:
    assert places(kernel, "vfs_*") == ["vfs_inner", "vfs_leaf"]
    assert places(kernel, "?*_[kl]eaf", "outer") == ["vfs_leaf", "outer"]
    assert places(kernel, "*outer") == ["*outer"]  # an address


def test_the_functions_that_a_function_calls(kernel: Kernel) -> None:
    assert places(kernel, "outer", callees=1) == ["outer", "vfs_inner"]
    assert places(kernel, "outer", callees=3) == ["outer", "vfs_inner", "vfs_leaf"]


def test_a_line_of_a_function(kernel: Kernel) -> None:
    (where,) = places(kernel, "outer+2")
    assert where.endswith("fs/traced.c:13")


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("none_*", r"no function of the vmlinux matches none_\*"),
        ("none+2", "the vmlinux has no function none"),
        ("outer+99", "line 110 of .*fs/traced.c, 99 below the start of outer, has no code"),
    ],
)
def test_places_that_are_not_there(kernel: Kernel, where: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        places(kernel, where)


def test_a_line_is_compiled_for_its_first_instruction(kernel: Kernel) -> None:
    wanted = Wanted((Probe("fs/traced.c:13", ("size",)),), ret=True)
    found = compiled(wanted, kernel.vmlinux, X86_64, 0)
    ((begin, size),) = symbols.sized(kernel.vmlinux, "outer")
    assert all(begin <= each.address < begin + size for each in found.places)
    assert found.places[0].ranges == ()
    with pytest.raises(NotCompiledError, match=r"the DWARF has no code for line 2 of traced\.c"):
        compiled(Wanted((Probe("traced.c:2"),)), kernel.vmlinux, X86_64, 0)


def test_functions_of_a_pattern_without_the_variable_are_left_out_and_said(kernel: Kernel) -> None:
    wanted = resolving.resolved(Wanted((Probe("vfs_*", ("count",)),)), kernel)
    found = compiled(wanted, kernel.vmlinux, X86_64, 0)
    assert [each.probe for each in found.places] == [0]
    (note,) = found.notes
    assert note == (
        "1 of the functions is not traced: vfs_leaf: count: the function's file has no variable or enumerator"
        " count; the function has x"
    )


def test_the_condition_is_not_that_of_functions_which_are_called(kernel: Kernel) -> None:
    wanted = resolving.resolved(Wanted((Probe("outer"),), when="size == 1", ret=True, callees=2), kernel)
    found = compiled(wanted, kernel.vmlinux, X86_64, 0)
    assert [len(each.code) > 1 for each in found.places] == [True, False, False]
    assert found.notes == ()


def test_the_list_of_places(kernel: Kernel) -> None:
    found = list(listing.places(kernel, "*", X86_64))
    assert [(each.kind, each.name) for each in found if each.name != "_start"] == [
        ("function", "outer"), ("function", "vfs_inner"), ("function", "vfs_leaf"), ("tracepoint", "thing"),
    ]  # fmt: skip
    assert next(each.values for each in found if each.name == "outer") == ("size: long int",)
    lines = [each for each in listing.places(kernel, "vfs_inner", X86_64) if each.kind == "line"]
    assert {"vfs_inner+2", "vfs_inner+3"} <= {each.name for each in lines}
    assert all(each.file.endswith("fs/traced.c") and each.line == 5 + int(each.name[10:]) for each in lines)
