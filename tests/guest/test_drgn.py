"""drgn on real guests: running, stopped, moved by KASLR, without vmcoreinfo; and symbols of another build."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from drgn import Program
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import cpu_curr

import vmdebug
from vmdebug import cli, kimage
from vmdebug.errors import MismatchError, StateError, UsageError
from vmdebug.session import DebugSession

SECONDS = 120.0
NO_VMCOREINFO = "initcall_blacklist=fw_cfg_sysfs_init"
"""Keeps the driver from telling QEMU where vmcoreinfo is."""


@pytest.fixture(scope="module", params=["", NO_VMCOREINFO], ids=["vmcoreinfo", "no-vmcoreinfo"])
def shared(request: pytest.FixtureRequest) -> Iterator[DebugSession]:
    """A guest that KASLR has moved, for all tests."""
    append: str = request.param
    with (
        tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as runtime,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        started = vmdebug.start("builtin", accel="tcg", cpus=2, kaslr=True, append=append, name="looked")
        patch.undo()
        with started:
            started.exec("modprobe lkdtm", timeout=SECONDS, check=True)
            yield started


@pytest.fixture
def session(shared: DebugSession, monkeypatch: pytest.MonkeyPatch) -> DebugSession:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared.vm.rundir.path.parent.parent))
    return shared


def names(program: Program) -> set[str]:
    return {task.comm.string_().decode() for task in for_each_task(program)}


def test_tasks_are_those_of_the_guest_and_it_runs_on(session: DebugSession) -> None:
    said = session.exec("cat /proc/[0-9]*/comm", check=True).stdout
    assert {"init", "kthreadd"} <= set(said.split()) & names(session.drgn)
    assert session.status == "running"
    assert session.notes == ()


def test_modules_have_source_lines(session: DebugSession) -> None:
    assert [module.name.string_() for module in for_each_module(session.drgn)] == [b"lkdtm"]
    place = session.drgn.source_location("lkdtm_WARNING")
    assert str(place).startswith("lkdtm_WARNING at ")
    assert "drivers/misc/lkdtm/bugs.c:" in str(place)


def test_several_programs_are_open_at_once_and_qmp_stays_free(session: DebugSession) -> None:
    with DebugSession(session.vm, owned=False) as other:
        assert names(other.drgn) == names(session.drgn)
        assert session.vm.qmp("query-status")["status"] == "running"
    assert "init" in names(session.drgn)


def test_the_stack_of_a_task_that_sleeps(session: DebugSession) -> None:
    assert "schedule" in [frame.name for frame in session.stack_trace(1)]
    with pytest.raises(UsageError, match="there is no task with pid 77777"):
        session.stack_trace(77777)


def test_the_stacks_of_tasks_on_cpus_of_the_stopped_guest(session: DebugSession) -> None:
    with pytest.raises(StateError, match="the stack of CPU 0 changes while looked runs"):
        session.stack_trace(cpu_curr(session.drgn, 0))
    with session.gdb.held():
        traces = [session.stack_trace(cpu_curr(session.drgn, cpu)) for cpu in (0, 1)]
        by_gdb = session.gdb.backtraces(timeout=SECONDS)
    ends = [[frame.name for frame in trace][-1] for trace in traces]
    assert len(ends) == 2
    assert {"do_idle", "cpu_startup_entry"} <= {frame.name for trace in traces for frame in trace}
    assert "do_idle" in by_gdb
    session.gdb.detach()
    session.exec("true", timeout=SECONDS, check=True)


def test_all_tasks_have_the_stacks_that_drgn_finds(session: DebugSession) -> None:
    assert "\npid 2 (kthreadd)\n#0  " in session.task_stacks()  # while it runs
    busy = session.exec("(while :; do :; done) >/dev/null 2>&1 & echo $!", check=True).stdout
    session.vm.pause()
    told = session.task_stacks().split("\n\n")
    by_drgn = [
        f"pid {task.pid.value_()} ({task.comm.string_().decode()})\n{session.stack_trace(task)}"
        for task in for_each_task(session.drgn)
    ]
    session.vm.resume()
    session.exec(f"kill {busy}", timeout=SECONDS, check=True)
    # drgn goes on to the return address 0 of kernel threads.
    ended = [re.sub(r"\n#\d+ +0x0$", "", each) for each in by_drgn]
    assert [re.sub(r" on CPU \d(?=\n)", "", each) for each in told] == ended
    assert any(" on CPU " in each and each.count("\n#") for each in told)
    assert sum("schedule (" in each for each in told) > 20


def test_symbols_of_another_build_are_refused(session: DebugSession, tmp_path: Path) -> None:
    kernel = session.vm.state.spec.kernel
    assert kernel.vmlinux is not None
    other = tmp_path / "vmlinux"
    shutil.copy(kernel.vmlinux, other)
    data = bytearray(other.read_bytes())
    at = data.index(bytes.fromhex(kimage.build_id(kernel.vmlinux)))
    data[at] ^= 1
    other.write_bytes(data)
    spec = msgspec.structs.replace(
        session.vm.state.spec, kernel=msgspec.structs.replace(kernel, vmlinux=other)
    )
    machine = type(session.vm)(session.vm.rundir, msgspec.structs.replace(session.vm.state, spec=spec))
    with pytest.raises(MismatchError, match="the symbols are not those of the kernel in memory"):
        _ = DebugSession(machine, owned=False).drgn
    forced = DebugSession(machine, owned=False, force=True)
    assert "init" in names(forced.drgn)
    assert forced.notes[0].startswith("using symbols of another build")


def test_the_command(session: DebugSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = session.name
    assert cli.status_of(["drgn", name, "-e", "print(len(list(for_each_task())), stack_trace(1)[0])"]) == 0
    count, frame = capsys.readouterr().out.split(maxsplit=1)
    assert int(count) > 10
    assert "schedule" in frame
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(prog['init_task'].comm.string_(), sys.argv[1:])\nsys.exit(3)\n")
    assert cli.status_of(["drgn", name, str(script), "--", "--all"]) == 3
    assert capsys.readouterr().out == "b'swapper/0' ['--all']\n"
    assert cli.status_of(["drgn", name, "-e", "prog['nothing']"]) == 1
    error = capsys.readouterr().err
    assert re.search(r'File "<string>", line 1.*could not find \'nothing\'', error, re.DOTALL)
    assert "vmdebug/cli" not in error


def test_a_guest_that_has_not_started(capsys: pytest.CaptureFixture[str]) -> None:
    with vmdebug.start("builtin", accel="tcg", halt=True, name="unstarted") as started:
        with pytest.raises(StateError, match="unstarted is halted at the reset vector"):
            _ = started.drgn
        assert cli.status_of(["drgn", "unstarted", "-e", "1"]) == StateError.exit_status
        assert "its kernel has not started" in capsys.readouterr().err
