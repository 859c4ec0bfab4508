"""Modules, CPUs and tasks at the prompt of vmdebug's GDB, and of a GDB without vmdebug."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import vmd_module_files
import zstandard

from vmdebug import process, shipped, vm
from vmdebug.deadline import Deadline
from vmdebug.debugger.interactive import Attachment, Extra, argv
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.process import Completed
from vmdebug.vm import Vm

SECONDS = 120.0

FRAMES_OF_A_CPU = (
    r"^CPU {}: pid \d+ \(.+\)\n#0 .*\n(#.*\n)*"
    r"#\d+ +0x\w+ in (cpu_startup_entry|ret_from_fork|entry_SYSCALL_64) \("
)
"""The outermost frame: of the idle task, of a kernel thread, or of a system call."""


@pytest.fixture
def machine(builtin: LaunchSpec) -> Iterator[Vm]:
    """The builtin guest with three CPUs and KASLR, at its shell."""
    parameters = tuple(word for word in builtin.parameters if word != "nokaslr")
    spec = msgspec.structs.replace(builtin, parameters=parameters, cpus=3)
    with vm.launch(spec, bound=True, timeout=SECONDS) as started:
        with started.console() as console:
            console.wait_ready(timeout=SECONDS)
        yield started


@pytest.fixture
def packed(kernel: Kernel, tmp_path: Path) -> Path:
    """The kernel's modules, compressed as in distributions."""
    assert kernel.modules is not None
    directory = tmp_path / "modules"
    directory.mkdir()
    found = vmd_module_files.index([kernel.modules])
    for name, ending, pack in (
        ("brd", "xz", lzma.compress),
        ("lkdtm", "gz", gzip.compress),
        ("rng_core", "zst", zstandard.ZstdCompressor().compress),
    ):
        (directory / f"{name}.ko.{ending}").write_bytes(pack(found[name].read_bytes()))
    return directory


def batch(machine: Vm, *commands: str) -> Completed:
    attachment = Attachment(
        endpoint=machine.state.gdb,
        kernel=machine.state.spec.kernel,
        extra=tuple(Extra("ex", command) for command in commands),
        batch=True,
        init=False,
    )
    return process.run(argv(attachment), deadline=Deadline.after(SECONDS), check=False)


def insert(machine: Vm, module: str) -> None:
    """Load a module in the guest."""
    with machine.console() as console:
        console.sendline(f"modprobe {module} && echo {module} is 'in'")
        console.expect(f"{module} is in", timeout=SECONDS)


def typed_at_the_first_breakpoint(machine: Vm, line: Sequence[str], typed: str) -> str:
    """Run GDB, type a line on the console once it has set a breakpoint, and return GDB's output."""
    with machine.console() as console, process.spawn(line, stdout=process.PIPE, stderr=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert any(row.startswith(b"Breakpoint 1 at ") for row in child.stdout)
        console.sendline(typed)
        stdout, stderr = child.stdout.read().decode(), child.stderr.read().decode()
        assert child.wait() == 0, stderr
    return stdout


def listed(stdout: str) -> dict[str, tuple[int, str]]:
    """Return the list of vmd-modules, by name."""
    rows = re.findall(r"^(\w+) +0x([0-9a-f]+)  (.+)$", stdout, re.MULTILINE)
    return {name: (int(address, 16), file) for name, address, file in rows}


def test_modules_are_listed_with_the_packed_files_that_they_come_from(machine: Vm, packed: Path) -> None:
    nothing = batch(machine, "vmd-modules")
    assert "no module is loaded\n" in nothing.stdout
    for module in ("brd", "lkdtm", "rng-core"):
        insert(machine, module)
    done = batch(
        machine,
        f"vmd-modules {packed}",
        "print max_part",
        "info line lkdtm_WARNING",
        "info symbol hwrng_register",
        "info symbol 1",
    )
    assert done.status == 0, done.stderr
    rows = listed(done.stdout)
    assert {name: file for name, (_, file) in rows.items()} == {
        "brd": str(packed / "brd.ko.xz"),
        "lkdtm": str(packed / "lkdtm.ko.gz"),
        "rng_core": str(packed / "rng_core.ko.zst"),
    }
    assert all(address >= 0xFFFFFFFF_C0000000 for address, _ in rows.values())
    assert "$1 = 1\n" in done.stdout
    assert "/bugs.c" in done.stdout
    assert "hwrng_register in section .text of " in done.stdout
    assert "No symbol matches 1." in done.stdout, "sections that the kernel drops lie nowhere"


def test_a_module_that_comes_and_goes_while_gdb_is_there(machine: Vm, kernel: Kernel) -> None:
    insert(machine, "brd")
    commands = (
        "print max_part",
        "break do_init_module",
        "continue",
        "delete",
        "info line lkdtm_module_init",
        "break free_module",
        "continue",
        "vmd-finish",
        "vmd-modules",
    )
    line = argv(
        Attachment(
            endpoint=machine.state.gdb,
            kernel=kernel,
            extra=tuple(Extra("ex", each) for each in commands),
            batch=True,
            init=False,
        )
    )
    stdout = typed_at_the_first_breakpoint(machine, line, "modprobe lkdtm; rmmod brd")
    assert "/core.c" in stdout
    assert "delete_module" in stdout.rpartition("free_module")[2]  # its caller
    rows = listed(stdout)
    assert list(rows) == ["lkdtm"]
    assert rows["lkdtm"][1].endswith("/lkdtm.ko")


def test_next_goes_with_a_task_to_another_cpu(machine: Vm, kernel: Kernel) -> None:
    inside = 'gdb.newest_frame().name() == "sched_setaffinity"'
    commands = (
        "break sched_setaffinity",
        "ignore 1 1",
        "continue",
        "delete",
        "print $_thread",
        f'python [gdb.execute("vmd-next") for _ in iter(lambda: {inside}, False)]',
        "print $_thread",
    )
    extra = tuple(Extra("ex", each) for each in commands)
    line = argv(
        Attachment(endpoint=machine.state.gdb, kernel=kernel, extra=extra, batch=True, init=False, kaslr=True)
    )
    stdout = typed_at_the_first_breakpoint(machine, line, "taskset 1 taskset 2 true")
    assert re.findall(r"^\$\d+ = (\d+)$", stdout, re.MULTILINE) == ["1", "2"], stdout


@pytest.fixture
def stripped(kernel: Kernel, tmp_path: Path) -> Path:
    """A module without debugging information, as in distributions without their -dbg package."""
    assert kernel.modules is not None
    directory = tmp_path / "stripped"
    directory.mkdir()
    module = vmd_module_files.index([kernel.modules])["lkdtm"]
    process.run(
        ["strip", "--strip-debug", "-o", directory / "lkdtm.ko", module], deadline=Deadline.after(SECONDS)
    )
    return directory


@pytest.mark.parametrize("file", ["stripped", "none"])
def test_backtraces_name_the_functions_of_modules_without_debugging_information(
    machine: Vm, stripped: Path, file: str
) -> None:
    """By the symbols of its file, or without one by those that the kernel keeps for kallsyms."""
    insert(machine, "lkdtm")
    if file == "none":
        shutil.rmtree(stripped)
        stripped.mkdir()
    bare = msgspec.structs.replace(machine.state.spec.kernel, modules=stripped)
    commands = ("break __warn", "continue", "backtrace", "info symbol lkdtm_WARNING")
    line = argv(
        Attachment(
            endpoint=machine.state.gdb,
            kernel=bare,
            extra=tuple(Extra("ex", each) for each in commands),
            batch=True,
            init=False,
        )
    )
    stdout = typed_at_the_first_breakpoint(
        machine, line, "echo WARNING >/sys/kernel/debug/provoke-crash/DIRECT"
    )
    assert re.search(
        r"^#\d+ +0x\w+ in lkdtm_WARNING\+0x\w+ \[lkdtm\] \(\)\n"
        r"#\d+ +0x\w+ in lkdtm_do_action\+0x\w+ \[lkdtm\] \(\)\n"
        r"#\d+ +0x\w+ in direct_entry(?:\[cold\])?\+0x\w+ \[lkdtm\] \(\)\n"
        r"(#.* at .*\n)+"
        r"#\d+ +0x\w+ in entry_SYSCALL_64 \(",
        stdout,
        re.MULTILINE,
    ), stdout
    assert "lkdtm_WARNING in section .text of " in stdout


def test_a_directory_that_is_none_is_named(machine: Vm, tmp_path: Path) -> None:
    done = batch(machine, f"vmd-modules {tmp_path}/nowhere")
    assert done.status == 2
    assert done.stderr.endswith(
        f"{tmp_path}/nowhere is not a directory\ngive a directory with module files in it\n"
    )


@pytest.fixture
def plain(machine: Vm, kernel: Kernel, tmp_path: Path) -> Callable[..., Completed]:
    """A GDB with only gdbinit/, in another directory, and nothing else of vmdebug."""
    shutil.copytree(shipped.gdbinit(), tmp_path / "gdbinit", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*commands: str) -> Completed:
        lines = (
            "set auto-load python-scripts off",
            f"file {kernel.vmlinux}",
            f"source {tmp_path}/gdbinit/vmdebug.gdb",
            f"target remote {machine.state.gdb}",
            *commands,
        )
        words = ["gdb", "-nx", "-q", "--batch", *(word for line in lines for word in ("-ex", line))]
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        return process.run(words, deadline=Deadline.after(SECONDS), env=env, cwd=tmp_path, check=False)

    return run


def test_a_gdb_of_ones_own_is_told_of_kaslr_and_then_sees_every_cpu_and_task(
    plain: Callable[..., Completed], kernel: Kernel
) -> None:
    blind = plain("vmd-bt-all 1", "vmd-task kthreadd", "vmd-modules")
    assert blind.stderr.count("; move the symbols too: vmd-slide --apply\n") == 3, blind.stderr
    assert "Python Exception" not in blind.stderr
    done = plain("vmd-slide --apply", "vmd-bt-all", "vmd-status", "vmd-task swapper/2", "vmd-task --frame 2")
    assert done.status == 0, done.stderr
    for cpu in range(3):
        assert re.search(FRAMES_OF_A_CPU.format(cpu), done.stdout, re.MULTILINE), done.stdout
    facts = dict(re.findall(r"^(\S+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert facts["build-id"] == kernel.build_id
    assert facts["kernel"] == f"{kernel.release}, proven by its build-id note"
    assert "\npid 0 (swapper/2) " in done.stdout
    asleep = done.stdout[done.stdout.index("pid 2 (kthreadd) asleep") :]
    assert re.search(r"^#\d+ .*\bschedule \(\) at .*\n#\d+ .* in kthreadd \(", asleep, re.MULTILINE)


def test_why_tasks_sleep_and_who_holds_what_they_want(machine: Vm) -> None:
    # Two tasks share an open file: the one that waits for messages holds the mutex of its position.
    share = "exec 3</proc/kmsg; cat <&3 >/dev/null & a=$!; cat <&3 >/dev/null & b=$!"
    blocked_ = "until grep -q '^State:.D' /proc/$a/status /proc/$b/status; do sleep 0.2; done; sleep 1"
    machine.exec(f"{share}; {blocked_}", timeout=SECONDS, check=True)
    done = batch(machine, "vmd-wait", "vmd-wait cat", "vmd-locks", "vmd-task cat", "vmd-bt-all")
    assert done.status == 0, done.stderr
    blocked = re.search(
        r"^pid (\d+) \(cat\) uninterruptible in (\w+) at (?:fs|include)/\S+:\d+:"
        r" waits for mutex (0x[0-9a-f]+), held by pid (\d+) \(cat\)$",
        done.stdout,
        re.MULTILINE,
    )
    assert blocked is not None, done.stdout
    waits, _, mutex, holds = blocked.groups()
    assert waits != holds
    assert f"pid {holds} (cat) interruptible in syslog_print at kernel/printk/printk.c:" in done.stdout
    assert f"mutex {mutex}, held by pid {holds} (cat), wanted by pid {waits} (cat)\n" in done.stdout
    assert not re.search(r"^#\d+ .* \?\? \(\)", done.stdout, re.MULTILINE), done.stdout
    assert "corrupt stack" not in done.stdout + done.stderr
    assert re.search(
        r"^#\d+ .* in entry_SYSCALL_64 \(\) at arch/x86/entry/entry_64.S:\d+$", done.stdout, re.MULTILINE
    )
    assert "no task matches nothing\n" in batch(machine, "vmd-wait nothing").stderr
    assert "vmd-locks takes one pid or name\n" in batch(machine, "vmd-locks 1 2").stderr


def test_the_program_of_a_task_has_its_symbols_where_it_is_mapped(machine: Vm, tmp_path: Path) -> None:
    program = tmp_path / "prog"
    source = tmp_path / "prog.c"
    source.write_text(LOOP)
    process.run(["gcc", "-g", "-O1", "-static-pie", "-o", program, source], deadline=Deadline.after(SECONDS))
    machine.put(program, "/tmp/prog", timeout=SECONDS)
    pid = machine.exec("/tmp/prog >/dev/null 2>&1 & echo $!", timeout=SECONDS, check=True).stdout.strip()
    alone = f"if $vmd_pid() == {pid}"
    done = batch(
        machine,
        f"vmd-user {pid} {program}",
        f"break inner {alone}",
        "continue",
        "delete",
        f"break vfs_read {alone}",
        "continue",
        f"vmd-user {pid} {program}",
        "echo whole:\\n",
        "backtrace",
        "frame function main",
        "info locals",
    )
    assert done.status == 0, done.stderr
    assert f"in pid {pid} (prog), which runs /tmp/prog\n" in done.stdout
    assert re.search(
        r"hit Breakpoint \d+, inner \(n=n@entry=\d+\) at .*/prog.c:\d+$", done.stdout, re.MULTILINE
    )
    stack, _, whole = done.stdout[done.stdout.rindex("which runs /tmp/prog") :].partition("whole:\n")
    assert re.search(
        r"^#\d+ .* in read \(.*\n#\d+ .* in inner \(.*\n#\d+ .* in main \(", stack, re.MULTILINE
    ), stack
    assert re.search(
        r"^#\d+ .* in entry_SYSCALL_64 \(.*\n"
        rf"#\d+ +<user space: pid {pid} \(prog\)> \(\)\n"
        r"#\d+ .* in read \(.*\n#\d+ .* in inner \(n=.*\) at .*/prog.c:\d+\n#\d+ .* in main \(",
        whole,
        re.MULTILINE,
    ), whole
    assert "corrupt stack" not in done.stdout + done.stderr
    assert re.search(r"^i = \d+$", whole, re.MULTILINE), whole
    assert "pid 2 is a kernel thread" in batch(machine, "vmd-user 2").stderr
    script = batch(machine, f"vmd-user {pid} {source}")
    assert "is not a 64-bit ELF program\n" in script.stderr


LOOP = """\
#include <fcntl.h>
#include <unistd.h>
__attribute__((noinline)) int inner(int n) {
    char b[16]; int f = open("/etc/passwd", 0); n += read(f, b, 10); close(f); return n;
}
int main(void) { for (int i = 0;; i++) { inner(i); usleep(100000); } }
"""


def test_a_modules_lines_are_right_wherever_it_lies_this_time(
    machine: Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the directory of GDB's index cache
    insert(machine, "lkdtm")
    first, said = address_and_line(machine, "lkdtm")
    assert "lkdtm/core.c" in said
    with machine.console() as console:
        console.sendline("rmmod lkdtm && echo is 'out'")
        console.expect("is out", timeout=SECONDS)
    insert(machine, "brd")
    insert(machine, "lkdtm")
    second, said = address_and_line(machine, "lkdtm")
    assert "lkdtm/core.c" in said
    assert first != second


def address_and_line(machine: Vm, module: str) -> tuple[int, str]:
    """Return the address of a module, and the source line of that address."""
    at, _ = listed(batch(machine, "vmd-modules").stdout)[module]
    return at, batch(machine, "vmd-modules", f"info line *{at:#x}").stdout
