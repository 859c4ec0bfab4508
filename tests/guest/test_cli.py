"""The command line with a real kernel."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmdebug import process, vm
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel
from vmdebug.process import Completed, ProcessRef

SECONDS = 240.0


def vmdebug(*words: str | Path, status: int = 0, stdin: bytes = b"") -> Completed:
    """Run the program, and check its exit status."""
    argv = [sys.executable, "-m", "vmdebug.cli", *words]
    done = process.run(argv, deadline=Deadline.after(SECONDS), check=False, stdin=stdin)
    assert done.status == status, f"{done.stdout}\n{done.stderr}"
    return done


def facts(name: str) -> dict[str, Any]:
    found = {each["name"]: each for each in json.loads(vmdebug("status", "--json").stdout)}
    entry: dict[str, Any] = found[name]
    return entry


@pytest.fixture
def halted(kernel: Kernel) -> Iterator[str]:
    """A builtin guest halted at the reset vector, in the background."""
    vmdebug("start", "builtin", "--halt", "--accel", "tcg", "--name", "cli")
    yield "cli"
    vmdebug("stop", "--all", "--force")


@pytest.fixture
def running(kernel: Kernel) -> Iterator[str]:
    """A builtin guest that boots, in the background."""
    vmdebug("start", "builtin", "--accel", "tcg", "--name", "cli")
    yield "cli"
    vmdebug("stop", "--all", "--force")


def test_the_main_job(halted: str, kernel: Kernel) -> None:
    found = facts(halted)
    assert found["status"] == "halted"
    assert found["build_id"] == kernel.build_id

    done = vmdebug("attach", "--batch", "--until", "start_kernel", "-ex", "bt", "-ex", "list")
    assert "#0  start_kernel ()" in done.stdout
    assert "init/main.c" in done.stdout
    assert "set_task_stack_end_magic(&init_task);" in done.stdout  # a source line

    # GDB has detached: the guest boots and runs a command.
    assert vmdebug("exec", "--", "echo 'a b' | tr a-z A-Z && echo *.nothing").stdout == "A B\n*.nothing\n"
    done = vmdebug("exec", "--", "sh", "-c", "echo out; echo err >&2; exit 7", status=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert facts(halted)["status"] == "running"
    assert "Linux version" in vmdebug("log").stdout

    vmdebug("stop", halted)
    assert json.loads(vmdebug("status", "--json").stdout) == []


def test_a_command_that_fails_in_batch_fails_the_batch(halted: str) -> None:
    done = vmdebug("attach", "--batch", "-ex", "print no_such_symbol", status=1)
    assert "no_such_symbol" in done.stderr


def test_a_script_on_a_vm_that_runs(running: str, tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text("def main(session, args):\n    print(session.exec(['echo', *args]).stdout)\n")
    assert vmdebug("run", script, "--name", running, "--", "a b").stdout == "a b\n\n"
    assert facts(running)["status"] == "running"


def test_a_script_that_passes_over_kernel_trouble_fails(running: str, tmp_path: Path) -> None:
    warns, passes = tmp_path / "warns.py", tmp_path / "passes.py"
    warns.write_text(
        "def main(session):\n"
        "    session.exec('dmesg -n 1; modprobe lkdtm')\n"
        "    session.exec('echo WARNING >/sys/kernel/debug/provoke-crash/DIRECT')\n"
    )
    passes.write_text("def main(session):\n    session.exec('true')\n")
    said = vmdebug("run", warns, "--name", running, status=1).stderr
    assert "the kernel had trouble while the script ran: kernel warn: WARNING: CPU: 0 PID: " in said
    assert "drivers/misc/lkdtm/core.c:" in said
    vmdebug("run", passes, "--name", running)
    vmdebug("run", warns, "--name", running, "--allow", "warn")


def test_the_example_shows_a_system_call(running: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "open_args.py"
    said = vmdebug("run", example, "--name", running).stdout
    assert "do_sys_openat2" in said
    assert "/etc/passwd" in said
    assert facts(running)["status"] == "running"


def test_a_script_that_fails_leaves_no_guest(kernel: Kernel, tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text("def main(session):\n    assert session.status == 'nonsense'\n")
    said = vmdebug("run", script, "--guest", "builtin", "--halt", status=1).stderr
    assert "line 2, in main" in said
    assert json.loads(vmdebug("status", "--json").stdout) == []


def test_the_console_is_typed_into_and_shown(running: str) -> None:
    vmdebug("exec", "--", "true")  # it has booted
    argv = [sys.executable, "-m", "vmdebug.cli", "console", running]
    with process.spawn(argv, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"echo $((6 * 7))\n")
        child.stdin.flush()
        for line in child.stdout:
            if line.strip() == b"42":
                break
        else:
            pytest.fail("the guest did not answer")


def test_the_console_of_a_halted_guest_says_why_it_is_silent(halted: str) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "console", halted]
    with process.spawn(argv, stdin=process.PIPE, stderr=process.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == f"--- the serial line of {halted} ---\n".encode()
        said = child.stderr.readline().decode()
        assert said.startswith(f"note: {halted} is halted at the reset vector and answers nothing; set it ")


def test_a_log_that_is_followed_ends_with_its_vm(running: str) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "log", running, "-f"]
    with process.spawn(argv, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert any(b"Linux version" in line for line in child.stdout)
        vmdebug("stop", running)
        child.stdout.read()
        assert child.wait(SECONDS) == 0


def test_a_foreground_vm_shows_its_console_and_dies_with_its_owner(kernel: Kernel) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "start", "builtin", "--fg", "--accel", "tcg", "--name", "fg"]
    with process.spawn(argv, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert any(b"Linux version" in line for line in child.stdout)
        qemu = ProcessRef.of(facts("fg")["pid"])
        assert qemu is not None
        os.kill(child.pid, signal.SIGKILL)
        assert qemu.wait(SECONDS)
    assert vm.every() == []


def test_a_dry_run_starts_nothing(kernel: Kernel) -> None:
    done = vmdebug("start", "builtin", "--halt", "--dry-run")
    assert done.stdout.startswith("/")
    assert str(kernel.image) in done.stdout
    assert "nokaslr" in done.stderr
    assert json.loads(vmdebug("status", "--json").stdout) == []


def test_a_start_whose_facts_cannot_be_printed_leaves_nothing(kernel: Kernel) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "start", "builtin", "--halt", "--accel", "tcg", "--json"]
    with Path("/dev/full").open("wb") as full, process.spawn(argv, stdout=full, stderr=process.PIPE) as child:
        assert child.stderr is not None
        said = child.stderr.read().decode()
        assert child.wait(SECONDS) == 3
    assert "cannot write standard output, /dev/full: No space left on device" in said
    assert vm.every() == []


def test_a_taken_name_is_a_usage_error(halted: str) -> None:
    said = vmdebug("start", "builtin", "--halt", "--name", halted, status=2).stderr
    assert halted in said


def test_a_second_vm_must_be_named(halted: str) -> None:
    vmdebug("start", "builtin", "--halt", "--accel", "tcg", "--name", "other")
    said = vmdebug("attach", status=2).stderr
    assert "cli" in said
    assert "other" in said


def test_doctor_finds_what_the_tests_need() -> None:
    checks = {each["name"]: each for each in json.loads(vmdebug("doctor", "--json").stdout)}
    assert checks["gdb"]["ok"]
    assert checks["qemu-system-x86_64"]["found"]


def test_kernel_build_is_there_at_once_the_second_time(kernel: Kernel) -> None:
    built = json.loads(vmdebug("kernel", "build", "--json").stdout)
    assert built["image"] == str(kernel.image)
