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


def gdb(program: Path, scripts: Path, *commands: str) -> Completed:
    lines = (f"source {shipped.gdbinit() / 'vmdebug.gdb'}", f"vmd-scripts {scripts}", *commands)
    words = [word for line in lines for word in ("-ex", line)]
    argv = ["gdb", "-nx", "-q", "--batch", str(program), *words]
    return process.run(argv, deadline=Deadline.after(60), check=False)


def test_a_constant_that_is_not_there_costs_only_its_users(program: Path, scripts: Path) -> None:
    show = "python import linux.constants as c; print(c.LX_there['first'], c.LX_FLAG)"
    done = gdb(program, scripts, "lx-hosts", show, "python c.LX_ODD")
    assert done.stdout == "hosts 3\n0 8\n"
    assert done.stderr.splitlines()[:2] == [
        'kernel GDB scripts: lx-clock may not work without LX_gone: No symbol "gone" in current context.',
        'kernel GDB scripts without lx-mounts: LX_gone_too: No symbol "gone_too" in current context.',
    ]
    assert "LX_ODD: this line of constants.py is not Python: LX_ODD = (unsigned long)" in done.stderr


def test_its_users_say_what_they_lack(program: Path, scripts: Path) -> None:
    done = gdb(program, scripts, "lx-clock")
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
def test_a_script_that_fails_ends_with_one_line(
    program: Path, scripts: Path, command: str, said: str
) -> None:
    assert gdb(program, scripts, command).stderr.splitlines()[2:] == [said]


def test_memory_that_cannot_be_read_is_not_the_scripts_fault(program: Path, scripts: Path) -> None:
    assert "broken" not in gdb(program, scripts, "lx-tasks memory").stderr


def test_reduced_debugging_information(program: Path, scripts: Path) -> None:
    (scripts / "scripts/gdb/linux/constants.py").write_text("LX_CONFIG_DEBUG_INFO_REDUCED = 1\n")
    done = gdb(program, scripts, "lx-hosts")
    assert done.stderr.startswith(
        "no kernel GDB scripts: they need all types, and CONFIG_DEBUG_INFO_REDUCED=y"
    )
    assert 'Undefined command: "lx-hosts"' in done.stderr


def test_without_constants_the_parts_that_need_none_are_there(program: Path, scripts: Path) -> None:
    (scripts / "scripts/gdb/linux/constants.py").unlink()
    done = gdb(program, scripts, "lx-tasks")
    assert "kernel GDB scripts without linux.constants: [Errno 2]" in done.stderr
    assert "kernel GDB scripts without lx-clock, lx-hosts, lx-mounts: " in done.stderr
    assert "lx-tasks is broken" in done.stderr
