"""The commands of gdbinit/ in a real GDB, with a small program instead of a guest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.process import Completed

PROGRAM = """
#include <unistd.h>
int reached;
const char linux_banner[] = "Linux version 0";
__attribute__((noinline)) void worker_step(int n) { reached += n; }
int main(int argc, char **argv) { worker_step(argc); if (argc > 1) pause(); return 0; }
"""

COMMANDS = (
    "vmd-until",
    "vmd-finish",
    "vmd-next",
    "vmd-slide",
    "vmd-status",
    "vmd-bt-all",
    "vmd-dmesg",
    "vmd-task",
    "vmd-wait",
    "vmd-locks",
    "vmd-user",
    "vmd-modules",
    "vmd-when",
    "vmd-goto",
    "vmd-bookmark",
    "vmd-last-write",
    "vmd-all-writes",
    "vmd-last-call",
    "vmd-first-call",
    "vmd-diff",
    "vmd-connect",
    "vmd-reconnect",
    "vmd-scripts",
    "vmd-source",
    "vmd-share",
    "vmd-run",
    "vmd-exit",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program whose debugging information names another build directory."""
    tree = tmp_path_factory.mktemp("tree")
    source = tree / "init" / "version.c"
    source.parent.mkdir()
    source.write_text(PROGRAM)
    argv = [
        "gcc",
        "-g",
        "-O1",
        f"-fdebug-prefix-map={tree}=/build/linux",
        "-o",
        str(tree / "program"),
        str(source),
    ]
    process.run(argv, deadline=Deadline.after(60))
    return tree / "program"


def gdb(*words: str, commands: tuple[str, ...], batch: bool = True) -> Completed:
    """Run GDB with gdbinit/ sourced, in another directory."""
    source = f"source {shipped.gdbinit() / 'vmdebug.gdb'}"
    lines = ("set confirm off", f"set $vmd_batch = {batch:d}", 'set $vmd_accel = "tcg"', source, *commands)
    argv = ["gdb", "-nx", "-q", "--batch", *words, *(word for line in lines for word in ("-ex", line))]
    return process.run(argv, deadline=Deadline.after(60), cwd=Path("/"), check=False)


def test_every_command_has_help_with_an_example() -> None:
    done = gdb(commands=("vmd", *(f"help {command}" for command in COMMANDS)))
    assert done.status == 0, done.stderr
    listed = done.stdout.splitlines()[: len(COMMANDS)]
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert done.stdout.count("Example: ") == len(COMMANDS)


def test_sourced_twice_it_is_as_sourced_once() -> None:
    again = f"source {shipped.gdbinit() / 'vmdebug.gdb'}"
    done = gdb(commands=(again, "vmd-run print 1"))
    assert (done.status, done.stdout, done.stderr) == (0, "$1 = 1\n", "")


def test_sourced_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "gdbinit").symlink_to(shipped.gdbinit())
    done = gdb(commands=(f"source {tmp_path / 'gdbinit' / 'vmdebug.gdb'}", "vmd-run print 1"))
    assert (done.status, done.stderr) == (0, "")


def test_a_batch_without_failures_ends_with_0_and_leaves_the_output_alone() -> None:
    done = gdb(commands=("vmd-run print 1", "vmd-run echo two\\n", "vmd-exit"))
    assert (done.status, done.stdout, done.stderr) == (0, "$1 = 1\ntwo\n", "")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("print nosuch", 'No symbol table is loaded.  Use the "file" command.\n'),
        ("python raise gdb.GdbError('mine')", "mine\n"),
        ("source /nowhere/at/all", "/nowhere/at/all: No such file or directory.\n"),
        ("vmd-status", "GDB is not connected to a guest\nconnect first: target remote SOCKET\n"),
    ],
)
def test_a_failure_is_not_lost_when_the_next_command_succeeds(command: str, words: str) -> None:
    done = gdb(commands=(f"vmd-run {command}", "vmd-run print 1", "vmd-exit"))
    assert (done.status, done.stdout) == (1, "$1 = 1\n")
    assert words in done.stderr  # GDB 13 prints more about an error in Python code, GDB 18 does not


def test_a_guest_that_is_not_there_ends_the_batch(tmp_path: Path) -> None:
    socket = tmp_path / "gdb.sock"
    done = gdb(commands=(f"vmd-run vmd-connect {socket}", "vmd-run print 1", "vmd-exit"))
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith(f"cannot connect to the guest at {socket}: ")


def test_until_stops_there(program: Path) -> None:
    done = gdb(
        str(program), commands=("starti", "vmd-run vmd-until worker_step 60", "vmd-run frame 0", "vmd-exit")
    )
    assert done.status == 0, done.stderr
    assert "#0  worker_step (n=n@entry=1) at " in done.stdout


def test_until_stops_at_its_deadline(program: Path) -> None:
    commands = ("starti x", "break nanosleep", "vmd-until worker_step", "vmd-until main 0.2")
    done = gdb(str(program), commands=commands)
    assert done.status == 5
    assert "main was not reached within 0.2 s\nit is at 0x" in done.stderr


def test_until_says_that_what_it_waits_for_has_ended(program: Path) -> None:
    done = gdb(str(program), commands=("starti", "vmd-until worker_step", "vmd-until main 60"))
    assert done.status == 1
    assert "the guest ended before it reached main\n" in done.stderr


def test_until_stopped_elsewhere_says_where(program: Path) -> None:
    done = gdb(str(program), commands=("starti", "break main", "vmd-until worker_step 60"))
    assert done.status == 1
    assert "the guest stopped before it reached worker_step\nit is at 0x" in done.stderr
    assert " in main\n" in done.stderr


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("worker_stpe", 'Function "worker_stpe" not defined.\nsimilar symbols: worker_step\n'),
        ("startup_64", "startup_64 runs before the kernel is mapped"),
        ("", "vmd-until: no location given"),
    ],
)
def test_until_refuses_what_can_never_be_reached(location: str, words: str, program: Path) -> None:
    done = gdb(str(program), commands=("starti", f"vmd-until {location}", "print 1"))
    assert done.status == 2
    assert words in done.stderr


def test_at_a_prompt_an_error_ends_the_command_and_not_gdb(program: Path) -> None:
    done = gdb(str(program), commands=("starti", "vmd-until worker_stpe 60", "print 11 + 2"), batch=False)
    assert 'Function "worker_stpe" not defined.' in done.stderr
    assert "$1 = 13" in done.stdout


def test_sources_are_found_where_they_are_now(program: Path) -> None:
    done = gdb(str(program), commands=("vmd-run list worker_step", "vmd-exit"))
    assert "reached += n;" not in done.stdout
    done = gdb(
        str(program), commands=(f"vmd-source {program.parent}", "vmd-run list worker_step", "vmd-exit")
    )
    assert (done.status, done.stderr) == (0, "")
    assert "reached += n;" in done.stdout


def test_sources_that_are_not_there_cost_one_line(program: Path, tmp_path: Path) -> None:
    done = gdb(str(program), commands=(f"vmd-source {tmp_path}",))
    assert done.stderr == f"no sources: {tmp_path} does not have /build/linux/init/version.c\n"


LOADER = """
import linux.constants
import linux.good
import linux.cpus
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    package = tmp_path / "scripts" / "gdb" / "linux"
    package.mkdir(parents=True)
    (tmp_path / "vmlinux-gdb.py").write_text(LOADER)
    (package / "__init__.py").touch()
    (package / "constants.py").write_text("import gdb\nLX_X = gdb.parse_and_eval('&nosuch')\n")
    (package / "cpus.py").write_text("from linux import constants\nX = constants.LX_X\n")
    (package / "good.py").write_text("import gdb\ngdb.execute('define lx-good\\necho good\\nend')\n")
    return tmp_path


def test_kernel_scripts_that_fail_cost_one_line_and_the_rest_works(scripts: Path, program: Path) -> None:
    done = gdb(str(program), commands=(f"vmd-scripts {scripts}", "vmd-run lx-good", "vmd-exit"))
    assert (done.status, done.stdout) == (0, "good")
    reason = 'No symbol "nosuch" in current context.'
    assert done.stderr == f"kernel GDB scripts without linux.cpus: LX_X: {reason}\n"


def test_no_kernel_scripts_at_all(tmp_path: Path) -> None:
    done = gdb(commands=(f"vmd-scripts {tmp_path}", "print 1"))
    assert done.stdout == "$1 = 1\n"
    assert done.stderr.startswith("no kernel GDB scripts: ")


def test_it_needs_neither_the_package_nor_its_place(tmp_path: Path) -> None:
    shutil.copytree(shipped.gdbinit(), tmp_path / "elsewhere")
    argv = ["gdb", "-nx", "-q", "--batch", "-ex", f"source {tmp_path}/elsewhere/vmdebug.gdb", "-ex", "vmd"]
    env = {"PATH": "/usr/bin", "HOME": str(tmp_path)}
    done = process.run(argv, deadline=Deadline.after(60), cwd=tmp_path, env=env)
    assert done.stderr == ""


def test_going_back_needs_a_replay() -> None:
    done = gdb(commands=("reverse-continue", "vmd-last-write jiffies", "reverse-stepi x"))

    assert done.stderr.count("GDB is not connected to a guest") == 2
    assert "reverse-stepi takes a number, got 'x'" in done.stderr
