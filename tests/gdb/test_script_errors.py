"""The kernel's own scripts in a real GDB, where some do not fit the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.process import Completed

LOADER = """\
import linux.constants
import linux.clock
import linux.mounts
import linux.tasks
"""

CONSTANTS = """\
import gdb
LX_CONFIG_DEBUG_INFO_REDUCED = 0
LX_there = gdb.parse_and_eval("there")
LX_gone = gdb.parse_and_eval("gone")
LX_FLAG = ((((1UL))) << (0x3U))
LX_ODD = (unsigned long)8UL
if 1:
    LX_gone_too = gdb.parse_and_eval("gone_too")
LX_LAST = 3
"""

CLOCK = """\
import gdb
from linux import constants

def resolution():
    return constants.LX_gone

class LxClock(gdb.Command):
    def __init__(self):
        super(LxClock, self).__init__("lx-clock", gdb.COMMAND_DATA)

    def invoke(self, arg, from_tty):
        gdb.write("{}\\n".format(resolution()))

LxClock()
"""

MOUNTS = """\
import gdb
from linux import constants

class LxHosts(gdb.Command):
    def __init__(self):
        super(LxHosts, self).__init__('lx-hosts', gdb.COMMAND_DATA)

    def invoke(self, arg, from_tty):
        gdb.write("hosts {}\\n".format(constants.LX_LAST))

LxHosts()

INFO = {constants.LX_gone_too: ",x"}

class LxMounts(gdb.Command):
    def __init__(self):
        super(LxMounts, self).__init__("lx-mounts", gdb.COMMAND_DATA)

LxMounts()
"""

TASKS = """\
import gdb

class LxTasks(gdb.Command):
    def __init__(self):
        super(LxTasks, self).__init__("lx-tasks", gdb.COMMAND_DATA)

    def invoke(self, arg, from_tty):
        if arg == "usage":
            raise gdb.GdbError("lx-tasks takes a pid")
        if arg == "memory":
            gdb.parse_and_eval("*(int *)0").fetch_lazy()
        gdb.parse_and_eval(arg or "there")["next"]

LxTasks()
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    linux = tmp_path / "scripts/gdb/linux"
    linux.mkdir(parents=True)
    (tmp_path / "vmlinux-gdb.py").write_text(LOADER)
    parts = {"__init__": "", "constants": CONSTANTS, "clock": CLOCK, "mounts": MOUNTS, "tasks": TASKS}
    for name, text in parts.items():
        (linux / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("program")
    (directory / "a.c").write_text("struct { int first; } there; int main(void) { return there.first; }")
    argv: list[str | Path] = ["gcc", "-g", "-o", directory / "program", directory / "a.c"]
    process.run(argv, deadline=Deadline.after(60))
    return directory / "program"


def gdb(program: Path, scripts: Path, *commands: str, how: str = "") -> Completed:
    lines = (f"source {shipped.gdbinit() / 'vmdebug.gdb'}", f"vmd-scripts {how}{scripts}", *commands)
    words = [word for line in lines for word in ("-ex", line)]
    argv = ["gdb", "-nx", "-q", "--batch", str(program), *words]
    return process.run(argv, deadline=Deadline.after(60), check=False)


both_ways = pytest.mark.parametrize("how", ["", "--lazy "])


@both_ways
def test_a_constant_that_is_not_there_costs_only_its_users(program: Path, scripts: Path, how: str) -> None:
    show = "python import linux.constants as c; print(c.LX_there['first'], c.LX_FLAG)"
    done = gdb(program, scripts, "lx-hosts", show, "python c.LX_ODD", how=how)
    assert done.stdout == "hosts 3\n0 8\n"
    assert done.stderr.splitlines()[:2] == [
        'kernel GDB scripts: lx-clock may not work without LX_gone: No symbol "gone" in current context.',
        'kernel GDB scripts without lx-mounts: LX_gone_too: No symbol "gone_too" in current context.',
    ]
    assert "LX_ODD: this line of constants.py is not Python: LX_ODD = (unsigned long)" in done.stderr


@both_ways
def test_its_users_say_what_they_lack(program: Path, scripts: Path, how: str) -> None:
    done = gdb(program, scripts, "lx-clock", how=how)
    assert done.stderr.splitlines()[-1] == (
        'lx-clock is broken on this kernel: LX_gone: No symbol "gone" in current context. (linux/clock.py:5)'
    )


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("lx-tasks", "lx-tasks is broken on this kernel: There is no member named next. (linux/tasks.py:12)"),
        ("lx-tasks nothing", 'lx-tasks failed: No symbol "nothing" in current context. (linux/tasks.py:12)'),
        ("lx-tasks usage", "lx-tasks takes a pid"),
    ],
)
@both_ways
def test_a_script_that_fails_ends_with_one_line(
    program: Path, scripts: Path, command: str, said: str, how: str
) -> None:
    assert gdb(program, scripts, command, how=how).stderr.splitlines()[2:] == [said]


def test_memory_that_cannot_be_read_is_not_the_scripts_fault(program: Path, scripts: Path) -> None:
    assert "broken" not in gdb(program, scripts, "lx-tasks memory").stderr


def test_reduced_debugging_information(program: Path, scripts: Path) -> None:
    (scripts / "scripts/gdb/linux/constants.py").write_text("LX_CONFIG_DEBUG_INFO_REDUCED = 1\n")
    done = gdb(program, scripts, "lx-hosts")
    assert done.stderr.startswith(
        "no kernel GDB scripts: they need all types, and CONFIG_DEBUG_INFO_REDUCED=y"
    )
    assert 'Undefined command: "lx-hosts"' in done.stderr


@both_ways
def test_without_constants_the_parts_that_need_none_are_there(program: Path, scripts: Path, how: str) -> None:
    (scripts / "scripts/gdb/linux/constants.py").unlink()
    done = gdb(program, scripts, "lx-tasks", how=how)
    assert "kernel GDB scripts without linux.constants: [Errno 2]" in done.stderr
    assert "kernel GDB scripts without lx-clock, lx-hosts, lx-mounts: " in done.stderr
    assert "lx-tasks is broken" in done.stderr


FUNCTIONS = """\
import gdb

class LxTwice (gdb.Function):
    \"\"\"Return twice a number.\"\"\"
    def __init__(self):
        super(LxTwice, self).__init__("lx_twice")

    def invoke(self, number):
        return number * 2

LxTwice()


class LxFile(gdb.Command):
    \"\"\"Print the name of a file.

Usage: lx-file FILE
\"\"\"
    def __init__(self):
        super(LxFile, self).__init__("lx-file", gdb.COMMAND_DATA,
                                     gdb.COMPLETE_FILENAME)

    def invoke(self, arg, from_tty):
        gdb.write("file {}\\n".format(arg))

LxFile()
"""

LOADED = "python import sys; print('loaded', 'linux' in sys.modules)"


@pytest.fixture
def functions(scripts: Path) -> Path:
    (scripts / "scripts/gdb/linux/tasks.py").write_text(FUNCTIONS)
    return scripts


def test_scripts_are_loaded_at_the_first_use_of_a_function(program: Path, functions: Path) -> None:
    twice = "print $lx_twice(4)"
    done = gdb(program, functions, LOADED, twice, LOADED, twice, "lx-hosts", how="--lazy ")
    assert done.stdout == "loaded False\n$1 = 8\nloaded True\n$2 = 8\nhosts 3\n"


def test_before_that_they_have_help_and_completion(program: Path, functions: Path) -> None:
    (functions / "abc").touch()
    asked = ("help lx-file", "complete lx-f", f"complete lx-file {functions}/ab", "help function", LOADED)
    done = gdb(program, functions, *asked, how="--lazy ")
    assert "Print the name of a file.\n\nUsage: lx-file FILE\n" in done.stdout
    assert "\nThe kernel's GDB scripts are loaded at its first use.\nlx-file\n" in done.stdout
    assert f"\nlx-file {functions}/abc\n" in done.stdout
    assert "function lx_twice -- Return twice a number." in done.stdout
    assert done.stdout.endswith("loaded False\n")
    assert "first use" not in gdb(program, functions, "lx-hosts", "help lx-file", how="--lazy ").stdout


@pytest.mark.parametrize("code", ["import linux.tasks", "from linux import tasks", "import linux.constants"])
def test_code_of_the_user_imports_what_works(program: Path, functions: Path, code: str) -> None:
    show = "python import sys; print(sys.modules['linux.constants'].LX_LAST)"
    done = gdb(program, functions, f"python {code}", show, "print $lx_twice(4)", "lx-hosts", how="--lazy ")
    assert done.stdout == "3\n$1 = 8\nhosts 3\n"
    assert len(done.stderr.splitlines()) == 2


def test_a_command_that_its_script_does_not_define(program: Path, scripts: Path) -> None:
    done = gdb(program, scripts, "lx-mounts", "lx-mounts", how="--lazy ")
    assert done.stderr.splitlines()[2:] == ["lx-mounts does not work with this kernel"] * 2


@pytest.mark.parametrize(
    "line",
    [
        'gdb.execute("set $vmd_test = 3")',
        "class P(gdb.Parameter): pass",
        "class Command(gdb.Command): __init__ = None",
    ],
)
def test_scripts_that_do_more_are_loaded_at_once(program: Path, functions: Path, line: str) -> None:
    script = functions / "scripts/gdb/linux/clock.py"
    script.write_text(f"import gdb\n{line}\n")
    assert "loaded True\n" in gdb(program, functions, LOADED, how="--lazy ").stdout
