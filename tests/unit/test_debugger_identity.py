"""The identity of the running kernel: when vmdebug asks GDB, and what follows; with recorded answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vmdebug.debugger.identity import Identity, Wanted
from vmdebug.errors import MismatchError, StateError
from vmdebug.guest import Kernel

KERNEL = Kernel(
    arch="x86_64",
    image=Path("/src/arch/x86/boot/bzImage"),
    origin="the tree /src",
    build_id="33" * 20,
    vmlinux=Path("/src/vmlinux"),
)

UNMAPPED = {"state": "unmapped", "slide": "0", "moved": "0"}
PROVEN = {"state": "proven", "slide": "0", "moved": "0", "how": "build-id note"}
SLID = PROVEN | {"slide": "241172480", "moved": "1"}
OTHER = {
    "state": "other",
    "slide": "0",
    "moved": "0",
    "build-id": "11" * 20,
    "theirs": "22" * 20,
    "banner": "Linux version 6.1.0 (me@here)",
}


class Gdb:
    """Answers each command by its name, and records it."""

    def __init__(self, **answers: Mapping[str, Any]) -> None:
        self.answers: dict[str, Mapping[str, Any]] = {"accel": {}, **answers}
        self.asked: list[str] = []

    def __call__(self, command: str, timeout: float) -> Mapping[str, Any]:
        self.asked.append(command)
        return self.answers[command.partition(" ")[0].removeprefix("-vmd-").lstrip("-").replace("-", "_")]


def identity(gdb: Gdb, warnings: list[str] | None = None, **wanted: Any) -> Identity:
    asked = Identity(gdb, ([] if warnings is None else warnings).append)
    asked.begin(Wanted(kernel=KERNEL, **wanted))
    return asked


def test_a_proven_kernel_is_asked_for_once() -> None:
    gdb = Gdb(prove=PROVEN)
    asked = identity(gdb)
    assert not asked.settle()
    assert not asked.open
    assert not asked.settle()
    assert gdb.asked == ["-vmd-prove 0"]


def test_the_slide_is_told() -> None:
    asked = identity(Gdb(prove=SLID), kaslr=True)
    assert asked.settle()
    assert asked.verdict is not None
    assert asked.verdict.slide == 241172480


@pytest.mark.parametrize("state", ["unmapped", "placed", "unknown"])
def test_what_is_not_proven_is_asked_again_at_the_next_stop(state: str) -> None:
    asked = identity(Gdb(prove=UNMAPPED | {"state": state}))
    asked.settle()
    assert asked.open


def test_another_build_names_both_sides_and_where_each_came_from() -> None:
    asked = identity(Gdb(prove=OTHER))
    with pytest.raises(MismatchError) as caught:
        asked.settle()
    error = caught.value
    assert f"build-id {'11' * 20} against {'22' * 20}" in error.message
    assert "vmlinux=" in error.hint
    assert "force=True" in error.hint
    assert "/src/vmlinux\n" in error.detail
    assert "Linux version 6.1.0 (me@here)\n" in error.detail
    assert f"bzImage, the tree /src\n         build-id {'33' * 20}" in error.detail
    assert asked.open, "it is refused at the next stop as well"


def test_force_warns_and_asks_no_more() -> None:
    warnings: list[str] = []
    gdb = Gdb(prove=OTHER)
    asked = identity(gdb, warnings, force=True)
    asked.settle()
    assert gdb.asked == ["-vmd-prove 1"]
    assert not asked.open
    (warning,) = warnings
    assert "11" * 20 in warning
    assert "22" * 20 in warning


@pytest.mark.parametrize(
    ("wanted", "planted"),
    [
        ({}, "-vmd-wait-kernel tcg 0"),
        ({"kaslr": True}, "-vmd-wait-kernel tcg 1"),
        ({"accel": "kvm"}, "-vmd-wait-kernel kvm 0"),
    ],
)
def test_a_kernel_that_is_not_mapped_is_waited_for(wanted: dict[str, Any], planted: str) -> None:
    gdb = Gdb(prove=UNMAPPED, wait_kernel={"first": "x86_64_start_kernel"}, end_wait_kernel={"reached": "1"})
    asked = identity(gdb, **wanted)
    assert asked.wait(planned=True)
    assert asked.waiting
    assert asked.arrived()
    assert not asked.waiting
    assert gdb.asked[-3:] == ["-vmd-prove 0", planted, "-vmd-end-wait-kernel"]


@pytest.mark.parametrize("answer", [PROVEN, PROVEN | {"state": "placed"}, PROVEN | {"state": "unknown"}])
def test_a_kernel_that_runs_is_not_waited_for(answer: Mapping[str, Any]) -> None:
    gdb = Gdb(prove=answer)
    assert not identity(gdb).wait(planned=True)
    assert gdb.asked == ["-vmd-prove 0"]


def test_kvm_and_kaslr_have_no_early_breakpoints_and_say_so() -> None:
    gdb = Gdb(prove=UNMAPPED, wait_kernel={"first": ""})
    asked = identity(gdb, accel="kvm", kaslr=True)
    with pytest.raises(StateError, match="one of 512 places: KVM finds it only") as caught:
        asked.wait(planned=True)
    assert 'accel="tcg"' in caught.value.hint
    assert not asked.wait(planned=False), "without breakpoints nothing is lost"


def test_what_the_kernel_rewrites_needs_a_hardware_breakpoint_under_kvm() -> None:
    gdb = Gdb(need_hardware={"rewritten": "a jump label"})
    assert identity(gdb, accel="kvm").need_hardware(3)
    assert gdb.asked == ["-vmd-accel kvm", "-vmd-need-hardware 3"]
    gdb.answers["need_hardware"] = {"rewritten": ""}
    assert not identity(gdb, accel="kvm").need_hardware(3)
    gdb.asked.clear()
    assert not identity(gdb).need_hardware(3)
    assert gdb.asked == [], "TCG's breakpoints are not in memory"


FUNCTION = {"number": "1", "addr": "0xffffffff81000123", "func": "__startup_64", "file": "head64.c"}
ASSEMBLY = {"number": "1", "addr": "0xffffffff81000004", "file": "head_64.S"}
NAMED = {"value": "(void (*)(void)) 0xffffffff81000004 <startup_64+4>"}


@pytest.mark.parametrize(
    ("entry", "where", "says", "physical"),
    [
        (FUNCTION, "__startup_64", "at __startup_64 is never hit: it runs before", "0x1000123"),
        (FUNCTION, "head64.c:140", "it is in __startup_64, which runs before", "0x1000123"),
        (ASSEMBLY, "*startup_64+4", "it is in startup_64, which runs before", "0x1000004"),
    ],
)
def test_a_breakpoint_that_is_never_hit_is_explained(
    entry: Mapping[str, Any], where: str, says: str, physical: str
) -> None:
    error = identity(Gdb(data_evaluate_expression=NAMED)).never_hit(entry, where)
    assert error is not None
    assert says in error.message
    assert "x86_64_start_kernel" in error.hint
    assert physical in error.hint


@pytest.mark.parametrize(
    "entry",
    [
        {"number": "1", "addr": "0xffffffff81ad7af2", "func": "start_kernel"},
        {"number": "1", "addr": "<PENDING>", "pending": "virtio_rng_probe"},
        {"number": "1", "addr": "<MULTIPLE>"},
    ],
)
def test_any_other_breakpoint_is_fine(entry: Mapping[str, Any]) -> None:
    assert identity(Gdb()).never_hit(entry, "x") is None
