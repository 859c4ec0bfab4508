"""Dumps of a guest that has panicked and that KASLR has moved: drgn, crash, GDB and the report open them."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import vmdebug
from vmdebug import cli, process
from vmdebug.deadline import Deadline
from vmdebug.drgn_program import symbols
from vmdebug.drgn_program.dump import DumpFile
from vmdebug.errors import UsageError
from vmdebug.session import DebugSession
from vmdebug.vm import dump

SECONDS = 180.0
NO_VMCOREINFO = "initcall_blacklist=fw_cfg_sysfs_init"
"""Keeps the driver from telling QEMU where vmcoreinfo is."""


class Dumped(NamedTuple):
    session: DebugSession
    made: dict[str, dump.Dump]

    @property
    def vmlinux(self) -> Path:
        found = self.session.vm.state.spec.kernel.vmlinux
        assert found is not None
        return found


@pytest.fixture(scope="module", params=["", NO_VMCOREINFO], ids=["vmcoreinfo", "no-vmcoreinfo"])
def dumped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumped]:
    append: str = request.param
    directory = tmp_path_factory.mktemp("dumps")
    with (
        tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as runtime,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        started = vmdebug.start(
            "builtin", accel="tcg", cpus=2, memory=256, kaslr=True, append=append, name="dumped"
        )
        patch.undo()
        with started:
            started.exec("true", timeout=SECONDS)
            started.console.sendline("echo c >/proc/sysrq-trigger")
            for pause in Deadline.after(SECONDS).pauses("the guest to panic"):
                if started.vm.qmp("query-status")["status"] == "guest-panicked":
                    break
                time.sleep(pause)
            made = {
                each: dump.write(started.vm, directory / each, format_=each) for each in ("elf", "kdump-zlib")
            }
            yield Dumped(started, made)


@pytest.fixture(params=["elf", "kdump-zlib"])
def file(request: pytest.FixtureRequest, dumped: Dumped) -> Path:
    return dumped.made[request.param].path


def test_a_dump_is_private_whole_and_says_where_kaslr_has_put_the_kernel(dumped: Dumped, file: Path) -> None:
    made = dumped.made[file.name]
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == made.size
    assert made.slide is not None
    assert made.slide % (2 << 20) == 0
    assert {each.name for each in file.parent.iterdir()} == {"elf", "kdump-zlib"}
    assert dumped.session.status == "panicked"


def test_drgn_shows_the_panicking_stack_with_file_and_line(dumped: Dumped, file: Path) -> None:
    opened = DumpFile(file)
    kernel = dumped.session.vm.state.spec.kernel
    assert (opened.release, opened.build_id) == (kernel.release, kernel.build_id)
    assert symbols.load(opened.program, kernel) == ()
    stack = str(opened.program.stack_trace(opened.program.crashed_thread().object))
    assert re.search(r"panic \(.*kernel/panic\.c:\d+", stack)
    assert re.search(r"sysrq_handle_crash \(.*drivers/tty/sysrq\.c:\d+", stack)


def test_crash_opens_it_by_the_command_that_is_told(dumped: Dumped, file: Path, tmp_path: Path) -> None:
    (line,) = (
        each
        for each in dump.readers(dumped.made[file.name], dumped.session.vm.state.spec.kernel)
        if "crash" in each
    )
    (tmp_path / "commands").write_text("sys\nquit\n")
    words = shlex.split(line)
    done = process.run(
        [words[0], "-s", "-i", tmp_path / "commands", *words[1:]],
        deadline=Deadline.after(SECONDS),
        check=False,
    )
    assert f"RELEASE: {dumped.session.vm.state.spec.kernel.release}" in done.stdout, done.stdout + done.stderr
    assert "CPUS: 2" in done.stdout


def test_its_log_its_report_and_drgn_from_the_command_line(
    dumped: Dumped, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(file), "--vmlinux", str(dumped.vmlinux)]
    assert cli.status_of(["dmesg", *words]) == 0
    assert "Kernel panic - not syncing: sysrq triggered crash" in capsys.readouterr().out
    assert cli.status_of(["report", *words]) == 0
    report = capsys.readouterr().out
    assert re.search(r"^--- kernel panic ---$", report, re.MULTILINE)
    assert re.search(r"proc_reg_write\+\S+ \(fs/proc/inode\.c:\d+", report)
    assert "panic Kernel panic - not syncing: sysrq triggered crash" in report
    assert re.search(r"^CPU 1: pid \d+ \(", report, re.MULTILINE)
    assert "not available" not in report
    assert cli.status_of(["drgn", *words, "-e", "print(stack_trace(1)[0].name)"]) == 0
    assert capsys.readouterr().out == "context_switch\n"
    assert cli.status_of(["drgn", *words, "-e", "print(task_stacks())"]) == 0
    tasks = capsys.readouterr().out.split("\n\n")
    assert any(each.startswith("pid 2 (kthreadd)\n#0  context_switch (") for each in tasks)
    assert any(
        re.match(r"pid \d+ \(sh\) on CPU \d\n#0 (.*\n)+#\d+ +sysrq_handle_crash ", each) for each in tasks
    )


def test_gdb_shows_it_like_a_guest(dumped: Dumped, file: Path) -> None:
    commands = (
        "vmd-status",
        "vmd-bt-all",
        "vmd-task init",
        "lx-version",
        "vmd-dmesg 3",
        "print init_task.comm",
    )
    words = [word for command in commands for word in ("-ex", command)]
    done = process.run(
        [
            sys.executable,
            "-m",
            "vmdebug.cli",
            "attach",
            file,
            "--vmlinux",
            dumped.vmlinux,
            "-nx",
            "--batch",
            *words,
        ],
        deadline=Deadline.after(SECONDS),
        check=False,
    )
    said = done.stdout
    assert done.status == 0, said + done.stderr
    assert "proven by its build-id note" in said
    assert re.search(r"in sysrq_handle_crash .* at .*drivers/tty/sysrq\.c:\d+", said)
    assert "\nCPU 1: pid " in said
    assert re.search(r"pid 1 \(init\) asleep.*sigsuspend", said, re.DOTALL)
    assert "Linux version 6" in said
    assert '"swapper/0' in said


def test_bad_dumps_have_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no dump")
    for words in (["report", str(tmp_path / "text")], ["dmesg", str(tmp_path / "missing")]):
        assert cli.status_of(words) == UsageError.exit_status
    error = capsys.readouterr().err
    assert f"{tmp_path}/text is not a dump of a kernel" in error
    assert f"there is no dump {tmp_path}/missing" in error
    assert cli.status_of(["attach", str(tmp_path / "text"), "--until", "x"]) == UsageError.exit_status
    assert "a dump does not run" in capsys.readouterr().err


def test_the_command_writes_a_dump_of_a_running_guest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with vmdebug.start("builtin", accel="tcg", memory=256, name="runs") as started:
        started.exec("true", timeout=SECONDS)
        target = tmp_path / "dump"
        assert cli.status_of(["dump", "runs", "-o", str(target)]) == 0
        assert f"vmdebug report {target} --vmlinux " in capsys.readouterr().err
        assert started.status == "running"
        started.exec("true", timeout=SECONDS, check=True)
        assert cli.status_of(["dump", "runs", "-o", str(target), "--format", "x"]) == UsageError.exit_status
        assert "there is no format 'x' in this QEMU" in capsys.readouterr().err
        assert cli.status_of(["dump", "runs", "-o", str(tmp_path / "missing/dump")]) == 3
        assert cli.status_of(["dmesg", str(target)]) == 0  # with the vmlinux of the VM
        assert "Linux version" in capsys.readouterr().out
        assert sorted(each.name for each in tmp_path.iterdir()) == ["dump"]
