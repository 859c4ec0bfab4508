"""A vmlinux with symbols only: what needs no types works, and what does says what it needs."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

import vmdebug
from tests.fixtures.accel import ACCEL, SECONDS
from vmdebug import process
from vmdebug.cli import status_of
from vmdebug.deadline import Deadline
from vmdebug.errors import GdbError
from vmdebug.guest import Kernel
from vmdebug.kimage.symbols import addresses

REMEDY = "use the vmlinux of the kernel's -dbg or debuginfo package, or build with CONFIG_DEBUG_INFO_DWARF5=y"


@pytest.fixture(scope="module")
def stripped(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The builtin kernel's vmlinux without its debugging information; it keeps its build-id."""
    assert kernel.vmlinux is not None
    file = tmp_path_factory.mktemp("stripped") / "vmlinux"
    process.run(["objcopy", "--strip-debug", kernel.vmlinux, file], deadline=Deadline.after(SECONDS))
    return file


@pytest.mark.parametrize("kaslr", [False, True])
def test_breakpoints_backtraces_the_log_and_the_shell(stripped: Path, kaslr: bool) -> None:
    options = vmdebug.StartOptions(vmlinux=stripped, halt=True, kaslr=kaslr, accel=ACCEL)
    with vmdebug.start("builtin", **options) as session:
        gdb = session.gdb
        early = gdb.breakpoint("start_kernel", temporary=True)
        stop = gdb.cont(timeout=SECONDS)
        assert (stop.breakpoint, stop.frame.function, stop.frame.file) == (early, "start_kernel", "")
        assert gdb.identity is not None
        assert gdb.identity.state == "proven"
        assert stop.frame.pc - gdb.identity.slide >= early.address
        with pytest.raises(GdbError, match="has not written its vmcoreinfo yet") as caught:
            gdb.dmesg()
        assert caught.value.hint == REMEDY

        gdb.cont(wait=False)
        session.exec("true", timeout=SECONDS)
        opened = gdb.breakpoint("do_sys_openat2", when='$_streq((char *) $rsi, "/etc/hostname")')
        session.console.sendline("cat /etc/hostname")
        stop = gdb.wait_stop(timeout=SECONDS)
        assert stop.breakpoint == opened
        assert [frame.function for frame in stop.backtrace()][:2] == ["do_sys_openat2", "__x64_sys_openat"]
        assert stop.frame.evaluate("(char *) $rsi").string_() == "/etc/hostname"
        assert gdb.evaluate("*(int *) &nr_cpu_ids") == 1
        assert "\n#1  0x" in gdb.backtraces()
        opened.delete()
        in_memory = gdb.dmesg(limit=10_000)
        gdb.cont(wait=False)
        assert in_memory == session.exec("dmesg", check=True).stdout.rstrip("\n")


def test_a_trace_of_registers(stripped: Path) -> None:
    with vmdebug.start("builtin", vmlinux=stripped, accel=ACCEL) as session:
        session.exec("true", timeout=SECONDS)
        with (
            session.gdb.held(),
            session.gdb.trace("vfs_read", args=["$rdx", "$rdi"], when="$rdx == 7", ret=True) as hits,
        ):
            session.exec("dd if=/dev/zero of=/dev/null bs=7 count=50; :", timeout=SECONDS)
        assert [(hit.args["$rdx"], hit.ret, hit.task) for hit in hits] == [(7, 7, None)] * 50
        assert all(isinstance(at, int) and at >> 47 == 0x1FFFF for at in (hit.args["$rdi"] for hit in hits))
        assert "vfs_read has no known type: its return values are the whole $rax" in hits.notes
        with (
            pytest.raises(GdbError, match="so GDB does not know this") as caught,
            session.gdb.trace("vfs_read", args=["count"]),
        ):
            pass
        assert "registers can be used: $rdi" in caught.value.message
        assert caught.value.hint == REMEDY
        with (
            pytest.raises(GdbError, match=r"\$comm: .* so GDB does not know struct task_struct") as caught,
            session.gdb.trace("vfs_read", when='$cpu == 0 && $comm == "cat"'),
        ):
            pass
        assert caught.value.hint == REMEDY


def test_what_needs_types_says_so(stripped: Path) -> None:
    with vmdebug.start("builtin", vmlinux=stripped, halt=True, accel=ACCEL) as session:
        gdb = session.gdb
        gdb.breakpoint("start_kernel", temporary=True)
        frame = gdb.cont(timeout=SECONDS).frame
        for refused in (
            lambda: gdb.evaluate("init_task.pid"),
            lambda: gdb.evaluate("(struct task_struct *) 0"),
            lambda: gdb.per_cpu("runqueues", 0),
            lambda: frame.arg("count"),
            lambda: frame.local("command_line"),
            lambda: gdb.breakpoint("vfs_read", when="count == 1"),
        ):
            with pytest.raises(GdbError) as caught:
                refused()
            assert REMEDY in caught.value.hint, caught.value
            assert "Traceback" not in str(caught.value)


def test_the_commands_of_a_person(
    stripped: Path, runtime: Path, capfd: pytest.CaptureFixture[str], kernel: Kernel
) -> None:
    words = ("--vmlinux", str(stripped), "--accel", ACCEL, "--name", "plain")
    assert status_of(["start", "builtin", "--halt", *words]) == 0
    said = capfd.readouterr().err
    assert (
        f"{stripped} has no debugging information: breakpoints, backtraces and traces by function work"
        in said
    )
    assert REMEDY in said.replace("\n             ", " ")
    try:
        attached = _vmdebug("attach", "plain", "--batch", "--until", "start_kernel", "-ex", "vmd-status")
        assert f"{kernel.release}, proven by its build-id note" in attached.stdout
        assert attached.stderr.count(REMEDY) == 1, attached.stderr
        assert "no kernel GDB scripts: they need the types of debugging information" in attached.stderr
        inside = addresses(stripped, "vfs_read")[0] + 4
        _vmdebug("exec", "plain", "--", f"echo 'was at [<{inside:x}>]' >/dev/kmsg")
        refused = _vmdebug("attach", "plain", "--batch", "-ex", "vmd-task 1", status=1)
        assert f"GDB does not know struct task_struct\n{REMEDY}" in refused.stderr
        assert "task unknown" in _vmdebug("attach", "plain", "--batch", "-ex", "vmd-bt-all").stdout
        assert "Linux version" in _vmdebug("dmesg", "plain").stdout
        decoded = _vmdebug("log", "plain", "--decode")
        assert re.search(rf"was at \[<{inside:x}>\] \(vfs_read\+0x4/0x\w+\)", decoded.stdout)
        assert "no source lines" in decoded.stderr
        traced = _vmdebug("trace", "plain", "vfs_read:count", status=1)
        assert f"hint: {REMEDY}" in traced.stderr
        assert "Traceback" not in attached.stderr + refused.stderr + decoded.stderr + traced.stderr
    finally:
        assert status_of(["stop", "plain"]) == 0


def _vmdebug(*words: str, status: int = 0) -> process.Completed:
    done = process.run(
        [sys.executable, "-m", "vmdebug.cli", *words], deadline=Deadline.after(SECONDS), check=False
    )
    assert done.status == status, done.stdout + done.stderr
    return done


def test_a_panic_on_the_way_to_a_function(stripped: Path) -> None:
    with vmdebug.start(
        "builtin", vmlinux=stripped, halt=True, accel=ACCEL, append="rdinit=/no init=/no"
    ) as session:
        panicked = _vmdebug("attach", session.name, "--batch", "--until", "kernel_restart", status=1)
        assert "panicked before it reached kernel_restart: VFS: Unable to mount root" in panicked.stderr


@pytest.mark.parametrize("kaslr", [False, True])
def test_an_image_alone_has_the_symbols_of_its_kallsyms(kernel: Kernel, tmp_path: Path, kaslr: bool) -> None:
    assert kernel.vmlinux is not None
    alone = tmp_path / "bzImage"
    shutil.copy(kernel.image, alone)
    with vmdebug.start(alone, halt=True, kaslr=kaslr, accel=ACCEL) as session:
        spec = session.vm.state.spec
        assert spec.notes[0].startswith(
            "symbols only from the kernel itself, its kallsyms: no vmlinux beside"
        )
        assert spec.kernel.vmlinux is not None
        for name in ("start_kernel", "vfs_read", "linux_banner", "jiffies"):
            assert addresses(spec.kernel.vmlinux, name) == addresses(kernel.vmlinux, name)
        gdb = session.gdb
        gdb.breakpoint("start_kernel", temporary=True)
        assert gdb.cont(timeout=SECONDS).frame.function == "start_kernel"
        assert gdb.identity is not None
        assert gdb.identity.state == "proven"
        gdb.cont(wait=False)
        session.exec("true", timeout=SECONDS)
        with gdb.held():
            assert f"Linux version {kernel.release}" in gdb.dmesg(limit=10_000)
