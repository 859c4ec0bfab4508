"""start --build, restart and session.restart in a tree whose make only copies the builtin kernel.

make builds the same kernel each time. A really rebuilt kernel was tested by hand, see docs/howto/kernels.md.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmdebug
from tests.fixtures.accel import ACCEL, SECONDS
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, StateError
from vmdebug.guest import Kernel
from vmdebug.process import Completed


@pytest.fixture
def linux(kernel: Kernel, tmp_path: Path) -> Path:
    """A tree without objects; make copies the builtin kernel, and counts how often."""
    assert kernel.vmlinux is not None
    tree = tmp_path / "linux"
    (tree / "arch/x86/boot").mkdir(parents=True)
    shutil.copy(kernel.vmlinux.parent / ".config", tree)
    (tree / "Makefile").write_text(
        "all:\n"
        f"\t@cp {kernel.vmlinux} vmlinux\n"
        f"\t@cp {kernel.image} arch/x86/boot/bzImage\n"
        "\t@echo '  CC      fs/open.o'\n"
        "\t@echo made >>made\n"
    )
    return tree


def vmd(*words: str | Path, check: bool = True) -> Completed:
    argv = [sys.executable, "-m", "vmdebug.cli", *words]
    return process.run(argv, deadline=Deadline.after(SECONDS), check=check)


@pytest.fixture
def ended() -> Iterator[None]:
    yield
    vmd("stop", "--all", "--force", check=False)


@pytest.mark.usefixtures("ended")
def test_the_loop_of_daily_work(linux: Path, kernel: Kernel) -> None:
    vmd("start", linux, "--build", "--halt", "--name", "loop", "--accel", ACCEL, "--append", "quiet")
    (before,) = json.loads(vmd("status", "--json").stdout)
    assert (linux / "made").read_text() == "made\n"
    now = json.loads(vmd("restart", "loop", "--build", "--json").stdout)
    assert (linux / "made").read_text() == "made\nmade\n"
    assert (now["name"], now["status"], now["build_id"]) == ("loop", "halted", kernel.build_id)
    assert now["pid"] != before["pid"]
    command_line = Path(f"/proc/{now['pid']}/cmdline").read_text()
    assert " quiet" in command_line


@pytest.mark.usefixtures("ended")
def test_what_does_not_build_leaves_the_vm_as_it_is(linux: Path) -> None:
    vmd("start", linux, "--build", "--halt", "--name", "loop", "--accel", ACCEL)
    (before,) = json.loads(vmd("status", "--json").stdout)
    (linux / "Makefile").write_text("all:\n\t@echo 'fs/open.c:1:1: error: no' >&2; exit 1\n")
    done = vmd("restart", "loop", "--build", check=False)
    assert done.status == 1
    assert "error: no" in done.stderr
    (after,) = json.loads(vmd("status", "--json").stdout)
    assert (after["pid"], after["status"]) == (before["pid"], "halted")


def test_breakpoints_of_a_session_are_there_in_the_new_vm(linux: Path, kernel: Kernel) -> None:
    shutil.copy(str(kernel.vmlinux), linux / "vmlinux")
    shutil.copy(kernel.image, linux / "arch/x86/boot/bzImage")
    with vmdebug.start(str(linux), halt=True, accel=ACCEL) as session:
        gdb = session.gdb
        place = gdb.breakpoint("do_sys_openat2", temporary=False)
        assert gdb.cont().breakpoint == place
        pid = session.vm.state.pid
        session.restart(build=True)
        assert session.status == "halted"
        assert session.vm.state.pid != pid
        assert session.gdb is gdb
        stop = gdb.cont()
        assert (stop.breakpoint, stop.frame.function) == (place, "do_sys_openat2")
        place.delete()
        gdb.cont(wait=False)
        assert session.exec("echo up").stdout == "up\n"
        with pytest.raises(StateError, match="a GDB is already attached"):
            vmdebug.attach(session.name).gdb  # noqa: B018 - the touch attaches


def test_a_full_disk_leaves_the_vm_and_its_debugger_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with vmdebug.start("builtin", halt=True, accel="tcg") as session:
        gdb, pid = session.gdb, session.vm.state.pid
        sizes = os.statvfs_result((4096, 4096, 768, 0, 0, 10, 0, 0, 0, 255))
        with monkeypatch.context() as full:
            full.setattr("os.statvfs", lambda _: sizes)
            with pytest.raises(HostError, match="No space left on device; the file system /"):
                session.restart()
        assert (session.status, session.vm.state.pid, session.gdb) == ("halted", pid, gdb)
        assert gdb.stopped
        session.restart()
        assert session.vm.state.pid != pid


@pytest.mark.usefixtures("ended")
def test_a_persons_gdb_takes_up_the_new_vm(linux: Path) -> None:
    vmd("start", linux, "--build", "--halt", "--name", "loop", "--accel", ACCEL)
    restart = f"shell {sys.executable} -m vmdebug.cli restart loop"
    commands = ("break start_kernel", restart, "vmd-reconnect", "continue", "info breakpoints")
    done = vmd("attach", "loop", "--batch", *(word for each in commands for word in ("-ex", each)))
    assert "in GDB of pid" not in done.stderr
    assert "Breakpoint 1, start_kernel" in done.stdout
    assert "breakpoint already hit 1 time" in done.stdout
