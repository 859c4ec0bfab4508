"""Symbols are compared with the memory of a real guest, and moved to where KASLR has put the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fixtures.accel import ACCEL, SECONDS, STATED
from vmdebug import process, session, vm
from vmdebug.cli import status_of
from vmdebug.deadline import Deadline
from vmdebug.errors import MismatchError, UsageError
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.session import DebugSession

Start = Callable[..., DebugSession]


@pytest.fixture
def start(builtin: LaunchSpec) -> Iterator[Start]:
    """Starts the builtin guest with other parameters, other symbols, or another stated accelerator."""
    with ExitStack() as running:

        def started(
            *, halt: bool = True, kaslr: bool = False, vmlinux: Path | None = None, accel: Any = ACCEL
        ) -> DebugSession:
            kept = tuple(word for word in builtin.parameters if not (kaslr and word == "nokaslr"))
            kernel = msgspec.structs.replace(builtin.kernel, vmlinux=vmlinux or builtin.kernel.vmlinux)
            spec = msgspec.structs.replace(builtin, halt=halt, parameters=kept, kernel=kernel)
            machine = running.enter_context(vm.launch(spec, bound=True, timeout=SECONDS))
            told = vm.Vm(machine.rundir, msgspec.structs.replace(machine.state, accel=accel))
            return running.enter_context(DebugSession(told, owned=False))

        yield started


@pytest.fixture
def another_build(kernel: Kernel, tmp_path: Path) -> Path:
    """A vmlinux that differs only in its build-id."""
    assert kernel.vmlinux is not None
    other = tmp_path / "vmlinux"
    process.run(["strip", "-g", "-o", str(other), str(kernel.vmlinux)], deadline=Deadline.after(SECONDS))
    other.write_bytes(other.read_bytes().replace(bytes.fromhex(kernel.build_id), bytes(20)))
    return other


@pytest.mark.parametrize("accel", STATED)
def test_a_breakpoint_set_at_the_reset_vector_is_hit(start: Start, accel: str) -> None:
    """GDB believes that this is KVM, and uses a hardware breakpoint, which TCG has too."""
    gdb = start(accel=accel).gdb
    assert gdb.frame().pc == 0xFFF0
    first = gdb.breakpoint("x86_64_start_kernel")
    second = gdb.breakpoint("start_kernel", temporary=True)
    stop = gdb.cont(timeout=SECONDS)
    assert (stop.breakpoint, stop.frame.function, first.hits) == (first, "x86_64_start_kernel", 1)
    assert gdb.identity is not None
    assert gdb.identity.state == "proven"
    stop = gdb.cont(timeout=SECONDS)
    assert (stop.breakpoint, stop.frame.function) == (second, "start_kernel")
    assert first.hits == 1


def test_what_runs_before_the_kernel_is_mapped(start: Start) -> None:
    gdb = start().gdb
    for place in ("startup_64", "*startup_64+4", "__startup_64"):
        with pytest.raises(UsageError, match=r"never hit: .*before the kernel is mapped"):
            gdb.breakpoint(place)
    gdb.breakpoint("secondary_startup_64")
    assert gdb.console("info breakpoints").count("keep y") == 1
    physical = int(gdb.evaluate("(long) &startup_64")) & 0x7FFFFFFF
    # Under KVM the decompressor would overwrite a software breakpoint.
    reached = gdb.breakpoint(physical, hardware=ACCEL == "kvm")
    assert gdb.cont(timeout=SECONDS).breakpoint == reached
    assert gdb.frame().pc == physical


def test_the_first_function_of_a_kernel_that_moves_is_too_early_under_kvm(start: Start) -> None:
    with pytest.raises(
        UsageError, match="never hit: under KVM a kernel that KASLR moves is found only"
    ) as raised:
        start(kaslr=True, accel="kvm").gdb.breakpoint("x86_64_start_kernel")
    assert "start_kernel" in raised.value.hint


@pytest.mark.parametrize(("boot", "accel"), [(0, ACCEL), (1, ACCEL), (2, "kvm")])
def test_kaslr_of_a_halted_guest(start: Start, kernel: Kernel, boot: int, accel: str) -> None:
    started = start(kaslr=True, accel=accel)
    gdb = started.gdb
    early = gdb.breakpoint("start_kernel")
    stop = gdb.cont(timeout=SECONDS)
    assert (stop.breakpoint, stop.frame.function, early.hits) == (early, "start_kernel", 1)
    assert gdb.identity is not None
    assert gdb.identity.state == "proven"
    assert stop.frame.pc == early.address + gdb.identity.slide
    assert gdb.evaluate("linux_banner").string_().startswith(f"Linux version {kernel.release} ")
    if boot == 0:
        gdb.cont(wait=False)
        assert started.exec("true", timeout=SECONDS).status == 0


def test_kaslr_of_a_guest_that_runs(start: Start, kernel: Kernel) -> None:
    started = start(halt=False, kaslr=True)
    assert started.exec("true", timeout=SECONDS).status == 0
    gdb = started.gdb
    assert gdb.identity is not None
    assert gdb.identity.state == "proven"
    assert gdb.evaluate("linux_banner").string_().startswith(f"Linux version {kernel.release} ")
    opened = gdb.breakpoint("do_sys_openat2")
    started.console.sendline("cat /etc/hostname")
    assert gdb.cont(timeout=SECONDS).breakpoint == opened


def test_running_on_without_waiting_proves_as_well(start: Start) -> None:
    started = start(kaslr=True)
    started.gdb.cont(wait=False, timeout=SECONDS)
    assert started.gdb.identity is not None
    assert started.gdb.identity.state == "proven"
    assert started.exec("true", timeout=SECONDS).status == 0


def test_symbols_of_another_build(start: Start, kernel: Kernel, another_build: Path) -> None:
    started = start(vmlinux=another_build)
    halted = session.attach(started.name)
    with halted, pytest.raises(MismatchError) as caught:
        halted.gdb.cont(timeout=SECONDS)
    error = caught.value
    assert f"build-id {'0' * 40} against {kernel.build_id}" in error.message
    assert str(another_build) in error.detail
    assert kernel.origin in error.detail
    assert f"Linux version {kernel.release} " in error.detail
    assert started.exec("true", timeout=SECONDS).status == 0, "it was let go"

    with session.attach(started.name) as running, pytest.raises(MismatchError, match=kernel.build_id):
        _ = running.gdb
    assert started.status == "running"

    with session.attach(started.name, force=True) as forced:
        (warning,) = [note for note in forced.gdb.notes if "another build" in note]
        assert kernel.build_id in warning
        banner = forced.gdb.evaluate("(char *) &linux_banner").string_()
        assert banner.startswith(f"Linux version {kernel.release} ")


def test_start_refuses_another_build_unless_forced(
    kernel: Kernel, another_build: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["start", "builtin", "--vmlinux", str(another_build), "--dry-run"]
    assert status_of(words) == MismatchError.exit_status
    refused = capsys.readouterr().err
    assert kernel.build_id in refused
    assert "0" * 40 in refused
    assert "--force" in refused
    assert status_of([*words, "--force"]) == 0
    assert "are of different builds" in capsys.readouterr().err
