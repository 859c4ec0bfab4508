"""`attach`: an interactive GDB on a real kernel."""

from __future__ import annotations

import lzma
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import pytest
import vmd_kernel_scan
import vmd_module_files

from tests.fixtures.accel import SECONDS, STATED
from vmdebug import guest, process, shipped, vm
from vmdebug.deadline import Deadline
from vmdebug.debugger.interactive import Attachment, Extra, argv
from vmdebug.debugger.ownership import VmOwner
from vmdebug.errors import GuestDiedError, StateError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.process import Completed
from vmdebug.sources import cpio
from vmdebug.vm import Vm

Start = Callable[..., Vm]


@pytest.fixture
def start(builtin: LaunchSpec) -> Iterator[Start]:
    """Start a guest: halted by default, with KASLR and more parameters if asked."""
    with ExitStack() as running:

        def started(
            *, halt: bool = True, kaslr: bool = False, append: tuple[str, ...] = (), cpus: int = 1
        ) -> Vm:
            kept = tuple(word for word in builtin.parameters if word != "nokaslr" or not kaslr)
            spec = msgspec.structs.replace(builtin, halt=halt, parameters=(*kept, *append), cpus=cpus)
            return running.enter_context(vm.launch(spec, bound=True, timeout=SECONDS))

        yield started


def attachment(machine: Vm, *commands: str, **changes: Any) -> Attachment:
    return msgspec.structs.replace(
        Attachment(
            endpoint=machine.state.gdb,
            kernel=machine.state.spec.kernel,
            extra=tuple(Extra("ex", command) for command in commands),
            batch=True,
            init=False,
            accel=machine.state.accel,
        ),
        **changes,
    )


def batch(machine: Vm, *commands: str, **changes: Any) -> Completed:
    line = argv(attachment(machine, *commands, **changes))
    return process.run(line, deadline=Deadline.after(SECONDS), check=False)


def at_its_shell(machine: Vm) -> bool:
    with machine.console() as console:
        console.wait_ready(timeout=SECONDS)
    return machine.status() == "running"


@pytest.mark.parametrize("accel", STATED)
def test_until_start_kernel_and_the_guest_goes_on_afterwards(start: Start, accel: str) -> None:
    """GDB believes that this is KVM, and uses a hardware breakpoint, which TCG has too."""
    machine = start()
    done = batch(machine, "bt", "list start_kernel", accel=accel, until="start_kernel", timeout=SECONDS)
    assert done.status == 0, done.stderr
    assert "#0  start_kernel () at " in done.stdout
    assert "void start_kernel(void)" in done.stdout
    assert "Hardware assisted" not in done.stdout, "nobody asked for the stop on the way"
    assert done.stderr == ""
    assert at_its_shell(machine)


def test_until_the_first_function(start: Start) -> None:
    done = batch(start(), "bt 1", accel="kvm", until="x86_64_start_kernel", timeout=SECONDS)
    assert done.status == 0, done.stderr
    assert "#0  x86_64_start_kernel (" in done.stdout


def test_a_persons_breakpoint_before_the_kernel_is_mapped(start: Start) -> None:
    """KVM cannot have it yet: the guest first runs to a hardware breakpoint, which is not shown."""
    done = batch(start(), "break start_kernel", "continue", "bt 1", "info breakpoints", accel="kvm")
    assert done.status == 0, done.stderr
    assert "Breakpoint 1, start_kernel () at " in done.stdout
    assert "#0  start_kernel () at " in done.stdout
    assert "x86_64_start_kernel" not in done.stdout
    assert "breakpoint already hit 1 time" in done.stdout


def test_a_persons_breakpoint_at_the_first_function(start: Start) -> None:
    done = batch(start(), "break *x86_64_start_kernel", "continue", accel="kvm")
    assert done.status == 1
    assert "#0  x86_64_start_kernel (" in done.stdout
    assert done.stderr == "Breakpoint 1 is here\n"


def test_more_hardware_breakpoints_than_kvm_holds(start: Start) -> None:
    names = ("start_kernel", "vfs_read", "vfs_write", "do_exit", "do_sys_openat2")
    done = batch(start(), *(f"hbreak {name}" for name in names), accel="kvm")
    assert done.stderr.startswith("KVM holds 4 hardware breakpoints and watchpoints, ")
    assert "delete one" in done.stderr


def test_breakpoints_where_the_kernel_rewrites_its_code(start: Start) -> None:
    """Under KVM the kernel overwrites a software breakpoint there, or finds it and stops with a BUG."""
    done = batch(
        start(), "break sched_clock_tick_stable", "bt 1", accel="kvm", until="copy_page", timeout=SECONDS
    )
    assert done.status == 0, done.stderr
    assert "#0  copy_page () at " in done.stdout
    assert done.stderr.startswith("breakpoint 2 is at a jump label, which the kernel rewrites: under KVM ")
    assert "hbreak sched_clock_tick_stable\n" in done.stderr


@pytest.mark.parametrize("until", [None, "start_kernel"])
def test_at_a_halted_guests_first_prompt_it_is_said_what_can_be_done(start: Start, until: str | None) -> None:
    done = batch(start(), batch=False, until=until)
    waiting = "the guest has not mapped its kernel yet: you can set breakpoints, but not read kernel memory\n"
    assert (waiting in done.stderr) == (until is None)


def test_a_person_has_the_kernels_scripts_and_our_own_commands(start: Start, kernel: Kernel) -> None:
    machine = start(halt=False, cpus=2)
    assert at_its_shell(machine)
    done = batch(machine, "vmd-status", "lx-version", "lx-ps")
    assert done.status == 0, done.stderr
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.count(" ") > 1)
    assert facts["build-id"].strip() == kernel.build_id
    assert facts["kernel"].strip() == f"{kernel.release}, proven by its build-id note"
    assert facts["slide"] == "0x0"
    assert "CPU 1 " in done.stdout
    assert f"Linux version {kernel.release} " in done.stdout
    assert " swapper/0" in done.stdout


def test_a_deadline(start: Start) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    done = batch(machine, "print 1", until="start_kernel", timeout=0.5)
    assert done.status == 5
    assert done.stderr.startswith("start_kernel was not reached within 0.5 s\nit is at 0x")
    assert "$1" not in done.stdout
    assert machine.status() == "running"


def test_a_symbol_that_the_kernel_does_not_have(start: Start) -> None:
    machine = start()
    done = batch(machine, until="strat_kernel")
    assert done.status == 2
    assert done.stderr == 'Function "strat_kernel" not defined.\nsimilar symbols: start_kernel\n'


def test_a_guest_that_panics_on_the_way(start: Start) -> None:
    machine = start(append=("rdinit=/nowhere", "init=/nowhere"))
    done = batch(machine, until="kernel_restart", timeout=SECONDS)
    assert done.status == 1
    assert done.stderr.startswith("the guest panicked before it reached kernel_restart: ")


def test_a_qemu_that_ends_on_the_way(start: Start) -> None:
    machine = start()
    line = argv(attachment(machine, until="kernel_restart", timeout=SECONDS))
    with process.spawn(line, stdout=process.PIPE, stderr=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert any(row.startswith(b"Temporary breakpoint 1 at ") for row in child.stdout)
        machine.state.qemu.signal(signal.SIGKILL)
        words = child.stderr.read()
        assert child.wait() == 1
    # GDB may have printed more before it.
    last = words.splitlines()[-1]
    assert last.startswith(b"the guest ended before it reached kernel_restart")
    assert b"aborted" not in last


@pytest.fixture
def panicked(start: Start) -> Vm:
    """A guest that has panicked, and ends at once when it is resumed."""
    machine = start(halt=False, append=("panic=-1",))
    machine.exec("true", timeout=SECONDS)
    with pytest.raises(GuestDiedError, match="Kernel panic"):
        machine.exec("echo c >/proc/sysrq-trigger", timeout=SECONDS)
    assert machine.status() == "panicked"
    return machine


def test_a_batch_on_a_panicked_guest_shows_the_panic_and_keeps_it(panicked: Vm) -> None:
    for _ in range(2):
        done = batch(panicked, "bt")
        assert done.status == 0
        assert "the guest has panicked; the end of its log:" in done.stderr
        assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr
        assert "sysrq_handle_crash+0x" in done.stderr
        assert " in panic (" in done.stdout
        assert panicked.status() == "panicked"
    assert panicked.qmp("query-status")["status"] == "guest-panicked"


def test_a_panicked_guest_that_the_user_resumes_runs_on(panicked: Vm) -> None:
    batch(panicked, "continue&")
    panicked.wait(timeout=SECONDS)


def test_a_panic_that_only_the_console_tells_is_shown_too(start: Start) -> None:
    machine = start(halt=False)
    machine.exec("true", timeout=SECONDS)
    done = batch(machine, panicked=True)
    assert "the guest has panicked; the end of its log:" in done.stderr
    assert machine.qmp("query-status")["status"] == "paused"


def test_the_prompt_tells_of_a_panic_and_quit_keeps_it(panicked: Vm) -> None:
    line = argv(attachment(panicked, batch=False))
    child = pexpect.spawn(line[0], list(line[1:]), timeout=SECONDS, encoding="utf-8")
    child.expect_exact("the guest has panicked; print the end of its log: vmd-dmesg 40")
    child.sendline("set confirm off")
    child.sendline("quit")
    child.expect(pexpect.EOF)
    assert panicked.status() == "panicked"


def test_sigterm_ends_a_batch_and_the_guest_runs_on(start: Start) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    line = argv(attachment(machine, "print 1", until="do_sys_openat2"))
    with (
        machine.connected(timeout=SECONDS) as qmp,
        qmp.listen("RESUME") as heard,
        process.spawn(line, stdout=process.PIPE, stderr=process.PIPE) as child,
    ):
        heard.next()
        child.send_signal(signal.SIGTERM)
        assert child.wait(SECONDS) == -signal.SIGTERM
        assert child.stdout is not None
        assert b"$1" not in child.stdout.read()
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert opens_a_file(machine)


def opens_a_file(machine: Vm) -> bool:
    """Whether the guest runs over the breakpoint in do_sys_openat2 that GDB had."""
    with machine.console() as console:
        opened = console.line.shell.execute("cat /proc/version", deadline=Deadline.after(SECONDS))
        return opened.stdout.startswith(b"Linux version ")


@pytest.mark.parametrize("boot", range(3))
def test_kaslr_halted_then_running(start: Start, boot: int) -> None:
    machine = start(kaslr=True)
    done = batch(machine, "vmd-slide", "bt", kaslr=True, until="start_kernel", timeout=SECONDS)
    assert done.status == 0, done.stderr
    assert "#0  start_kernel () at " in done.stdout
    assert at_its_shell(machine)
    done = batch(machine, "print linux_banner", "vmd-status")
    assert done.status == 0, done.stderr
    assert f'"Linux version {machine.state.spec.kernel.release} ' in done.stdout
    assert "the symbols are not there yet" not in done.stdout


def test_kaslr_under_kvm(start: Start) -> None:
    """GDB believes that this is KVM, and finds the kernel with hardware watchpoints, which TCG has too."""
    machine = start(kaslr=True)
    changes: dict[str, Any] = {"accel": "kvm", "kaslr": True, "timeout": SECONDS}
    done = batch(machine, "bt", "print linux_banner", until="start_kernel", **changes)
    assert done.status == 0, done.stderr
    assert "KASLR: the guest ran into x86_64_start_kernel, where" in done.stderr
    assert "#0  start_kernel () at " in done.stdout
    assert f'"Linux version {machine.state.spec.kernel.release} ' in done.stdout
    assert at_its_shell(machine)


def test_the_first_function_of_a_kernel_that_moves_is_passed_under_kvm(start: Start) -> None:
    done = batch(start(kaslr=True), until="x86_64_start_kernel", accel="kvm", kaslr=True)
    assert done.status == 2
    assert "run to a later function: start_kernel" in done.stderr


@pytest.mark.parametrize("until", ["start_kernel", None])
def test_kaslr_under_kvm_where_the_kernel_cannot_be_found(start: Start, until: str | None) -> None:
    """The facts are those of another firmware: refused at once, and nothing waits."""
    nowhere = "python vmd_arch.use({**json.loads(FACTS), 'first_accesses_roms': ['no-such-rom']})"
    path = shipped.gdbinit() / "arches" / "x86_64.json"
    facts = f"python import json, vmd_arch; FACTS = json.dumps(json.load(open('{path}'))['debug'])"
    changes: dict[str, Any] = {"accel": "kvm", "kaslr": True, "before": (facts, nowhere)}
    done = batch(start(kaslr=True), "break start_kernel", "continue", until=until, **changes)
    assert done.status == 1
    assert done.stderr.count("KASLR moves this kernel, and KVM cannot stop this guest") == 2
    assert "start the guest without --kaslr" in done.stderr


def test_the_deadline_holds_for_the_wait_for_a_kernel_that_moves(start: Start) -> None:
    done = batch(start(kaslr=True), kaslr=True, until="start_kernel", timeout=0.01)
    assert done.status == 5
    assert done.stderr.startswith("start_kernel was not reached within 0.01 s\nit is at 0x")


def another_build(kernel: Kernel, tmp_path: Path) -> Path:
    assert kernel.vmlinux is not None
    other = tmp_path / "vmlinux"
    process.run(["strip", "-g", "-o", str(other), str(kernel.vmlinux)], deadline=Deadline.after(SECONDS))
    content = other.read_bytes()
    other.write_bytes(content.replace(bytes.fromhex(kernel.build_id), bytes(20)))
    return other


def test_a_vmlinux_of_another_build_is_refused_with_both_build_ids(
    start: Start, kernel: Kernel, tmp_path: Path
) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    other = msgspec.structs.replace(kernel, vmlinux=another_build(kernel, tmp_path), gdb_scripts=None)
    done = batch(machine, "print 1", kernel=other)
    assert done.status == 4
    assert f"build-id {'0' * 40}\n" in done.stderr
    assert f"build-id {kernel.build_id}\n" in done.stderr
    assert f"Linux version {kernel.release} " in done.stderr
    assert "$1" not in done.stdout
    forced = batch(machine, "print 1", kernel=other, force=True)
    assert forced.status == 0
    assert forced.stderr.startswith("warning: the vmlinux does not match the running kernel\n")


def test_a_halted_guest_turns_out_to_be_of_another_build_once_it_has_a_kernel(
    start: Start, kernel: Kernel, tmp_path: Path
) -> None:
    machine = start()
    other = msgspec.structs.replace(kernel, vmlinux=another_build(kernel, tmp_path), gdb_scripts=None)
    done = batch(machine, "print 1", kernel=other, until="start_kernel", timeout=SECONDS)
    assert done.status == 4, done.stderr
    assert f"build-id {kernel.build_id}\n" in done.stderr
    assert "$1" not in done.stdout


def test_each_cpu_with_its_task(start: Start) -> None:
    machine = start(halt=False, cpus=2)
    assert at_its_shell(machine)
    done = batch(machine, "thread 2", "frame 1", "vmd-bt-all 2", "thread", "frame")
    assert done.status == 0, done.stderr
    assert re.search(r"^CPU 0: pid \d+ \(.+\)\n#0 .*\n#1 ", done.stdout, re.MULTILINE)
    assert re.search(r"^CPU 1: pid \d+ \(.+\)\n#0 ", done.stdout, re.MULTILINE)
    shown = done.stdout[done.stdout.rindex("[Current thread is ") :]
    assert shown.startswith("[Current thread is 2 ")
    assert "\n#1 " in shown, "the selected frame is selected still"


def test_tasks_that_sleep_have_frames_that_work(start: Start) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    done = batch(
        machine, "vmd-task kthreadd", "vmd-task --frame 2", "up 2", "info frame", "vmd-task swapper/0"
    )
    assert done.status == 0, done.stderr
    first, second = done.stdout.split("pid 2 (kthreadd) asleep, task_struct 0x")[1:]
    assert re.search(r"^#\d+ .*\bschedule \(\) at .*\n#\d+ .* in kthreadd \(", first, re.MULTILINE)
    assert " schedule (" in second
    assert "pid 0 (swapper/0) " in second
    assert machine.status() == "running"


def test_frames_of_a_task_are_gone_when_the_guest_has_run(start: Start) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    done = batch(machine, "vmd-task --frame kthreadd", "stepi", "backtrace")
    assert done.status == 0, done.stderr
    assert "kthreadd (" not in done.stdout[done.stdout.index("task_struct") :].split("\n", 20)[-1]


@pytest.mark.parametrize(
    ("name", "words"), [("4711", "no task matches 4711"), ("kworker/*", "tasks match kworker/*\n")]
)
def test_a_task_that_is_not_one(start: Start, name: str, words: str) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    done = batch(machine, f"vmd-task --frame {name}")
    assert done.status == 2
    assert words in done.stderr


@pytest.fixture
def packed(kernel: Kernel, tmp_path: Path) -> Path:
    """The kernel's brd module, compressed, and nothing else."""
    assert kernel.modules is not None
    found = vmd_module_files.index([kernel.modules])["brd"]
    directory = tmp_path / "modules"
    directory.mkdir()
    (directory / "brd.ko.xz").write_bytes(
        lzma.compress(vmd_module_files.unpacked(found, tmp_path).read_bytes())
    )
    return directory


@pytest.fixture
def with_module(builtin: LaunchSpec, packed: Path, tmp_path: Path) -> LaunchSpec:
    """The builtin guest with /brd.ko, loaded by its first command."""
    assert isinstance(builtin.machine, OwnMachine)
    assert builtin.machine.initrd is not None
    initrd = tmp_path / "initrd"
    module = cpio.archive([cpio.file("brd.ko", lzma.decompress((packed / "brd.ko.xz").read_bytes()))])
    initrd.write_bytes(builtin.machine.initrd.read_bytes() + module)
    kernel = msgspec.structs.replace(builtin.kernel, modules=packed)
    machine = msgspec.structs.replace(builtin.machine, initrd=initrd)
    return msgspec.structs.replace(builtin, kernel=kernel, machine=machine)


@pytest.mark.parametrize("kaslr", [False, True])
def test_a_breakpoint_in_a_module_that_comes_later_is_hit_in_its_init(
    with_module: LaunchSpec, packed: Path, kaslr: bool
) -> None:
    kept = tuple(word for word in with_module.parameters if word != "nokaslr" or not kaslr)
    spec = msgspec.structs.replace(with_module, parameters=kept)
    with vm.launch(spec, bound=True, timeout=SECONDS) as machine:
        commands = (
            "set breakpoint pending on",
            "break brd_init",
            "continue",
            "bt 1",
            "print brd_init",
            "p max_part",
        )
        line = argv(attachment(machine, *commands))
        with machine.console() as console:
            console.wait_ready(timeout=SECONDS)
            with process.spawn(line, stdout=process.PIPE, stderr=process.PIPE) as child:
                assert child.stdout is not None
                assert child.stderr is not None
                assert any(row.startswith(b"Breakpoint 1 (brd_init) pending.") for row in child.stdout)
                console.sendline("insmod /brd.ko")
                stdout = child.stdout.read().decode()
                stderr = child.stderr.read().decode()
                assert child.wait() == 0, stderr
            assert "#0  brd_init () at " in stdout
            assert re.search(r"^brd: symbols at 0x[0-9a-f]+ from ", stderr, re.MULTILINE)
            console.expect("brd: module loaded", timeout=SECONDS)
        done = batch(machine, "print max_part")
        assert done.status == 0, done.stderr
        assert "$1 = 1\n" in done.stdout
        assert re.search(rf"^brd: symbols at 0x[0-9a-f]+ from {packed}/brd.ko.xz$", done.stderr, re.MULTILINE)


def test_a_breakpoint_in_a_module_is_hit_when_it_is_loaded_anew_elsewhere(with_module: LaunchSpec) -> None:
    with (
        vm.launch(with_module, bound=True, timeout=SECONDS) as machine,
        machine.console() as console,
    ):
        console.wait_ready(timeout=SECONDS)
        console.sendline("insmod /brd.ko")
        console.expect("brd: module loaded", timeout=SECONDS)
        line = argv(attachment(machine, "break brd_alloc", "continue", "bt 1"))
        with process.spawn(line, stdout=process.PIPE, stderr=process.PIPE) as child:
            assert child.stdout is not None
            assert any(row.startswith(b"Breakpoint 1 at 0x") for row in child.stdout)
            console.sendline("rmmod brd; modprobe lkdtm; insmod /brd.ko")
            assert "#0  brd_alloc (i=" in child.stdout.read().decode()
            assert child.wait() == 0


def test_a_module_of_another_build_has_no_symbols_and_a_stripped_one_no_lines(
    with_module: LaunchSpec, packed: Path
) -> None:
    with vm.launch(with_module, bound=True, timeout=SECONDS) as machine:
        with machine.console() as console:
            console.wait_ready(timeout=SECONDS)
            console.sendline("insmod /brd.ko")
            console.expect("brd: module loaded", timeout=SECONDS)
        (packed / "brd.ko").write_bytes(_with_another_build_id(packed / "brd.ko.xz"))
        done = batch(machine, "print max_part")
        assert done.status == 1
        reason = f"{packed / 'brd.ko'} is of another build: its build-id is {'0' * 40}, the loaded module's "
        assert f"brd: no symbols: {reason}" in done.stderr
        # Stripped, as in nixpkgs' kernels.
        (packed / "brd.ko").write_bytes(lzma.decompress((packed / "brd.ko.xz").read_bytes()))
        process.run(["strip", "--strip-debug", packed / "brd.ko"], deadline=Deadline.after(SECONDS))
        done = batch(machine, "info line brd_exit")
        assert done.status == 0, done.stderr
        assert "No line number information available for address" in done.stdout
        assert f"from {packed}/brd.ko; it has no debug information, so GDB knows neither its " in done.stderr


def _with_another_build_id(module: Path) -> bytes:
    plain = lzma.decompress(module.read_bytes())
    at = plain.index(vmd_kernel_scan.BUILD_ID) + len(vmd_kernel_scan.BUILD_ID)
    return plain[:at] + bytes(20) + plain[at + 20 :]


@pytest.mark.parametrize("end", ["detach", "quit"])
def test_a_step_cut_short_does_not_halt_the_guest_that_gdb_has_let_go_of(start: Start, end: str) -> None:
    machine = start(halt=False, cpus=2)
    assert at_its_shell(machine)
    calls = "taskset 2 sh -c 'while :; do cat /etc/nosuch; done' >/dev/null 2>&1 &"
    with machine.console() as console:
        console.line.shell.execute(calls, deadline=Deadline.after(SECONDS))
    done = batch(
        machine,
        'break do_sys_openat2 if $_streq(filename, "/etc/nosuch")',
        "continue",
        "thread 1",
        "python while gdb.selected_thread().num == 1: gdb.execute('next', to_string=True)",
        end,
    )
    assert done.status == 0, done.stderr
    assert "SIG" not in done.stdout
    with machine.console() as console:
        assert console.line.shell.execute("echo on", deadline=Deadline.after(SECONDS)).stdout == b"on\n"


BECOME = """
import sys
from pathlib import Path
from vmdebug import guest
from vmdebug.debugger.interactive import Attachment, attach
kernel = guest.decode(Path(sys.argv[1]).read_bytes(), guest.Kernel)
attach(Attachment(endpoint=sys.argv[2], kernel=kernel, init=False), lock=Path(sys.argv[3]), vm="vm")
"""

PROMPT = r"\(gdb\) $"


@contextmanager
def spawned(machine: Vm, tmp_path: Path) -> Iterator[pexpect.spawn]:
    """Yield a GDB in a terminal."""
    kernel = tmp_path / "kernel.json"
    kernel.write_bytes(guest.encode(machine.state.spec.kernel))
    words = ["-c", BECOME, str(kernel), machine.state.gdb, str(machine.rundir.attach_lock)]
    gdb = pexpect.spawn(
        sys.executable, words, timeout=SECONDS, encoding="utf-8", env={**os.environ, "TERM": "dumb"}
    )
    try:
        yield gdb
    finally:
        gdb.close(force=True)


@pytest.fixture
def terminal(start: Start, tmp_path: Path) -> Iterator[tuple[Vm, pexpect.spawn]]:
    """The prompt of a GDB in a terminal, on a guest at its shell."""
    machine = start(halt=False)
    assert at_its_shell(machine)
    with spawned(machine, tmp_path) as gdb:
        gdb.expect(PROMPT)
        yield machine, gdb


FIRST = ("lx-version", "show language", "print $lx_current().pid", "info breakpoints")


def has_all(said: str, kernel: Kernel) -> bool:
    """Whether the commands of `FIRST` have worked."""
    version = f"Linux version {kernel.release} " in said
    return version and '"auto; currently ' in said and re.search(r"\$1 = \d+", said) is not None


def test_what_is_typed_before_the_prompt_finds_everything(
    start: Start, tmp_path: Path, kernel: Kernel
) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    with spawned(machine, tmp_path) as gdb:
        gdb.send("".join(f"{each}\n" for each in FIRST))
        gdb.expect("No breakpoints or watchpoints.")
        assert has_all(str(gdb.before), kernel)


def test_the_first_prompt_is_followed_by_the_scripts_without_a_command(
    terminal: tuple[Vm, pexpect.spawn], kernel: Kernel
) -> None:
    _, gdb = terminal
    gdb.send("help lx-vers\t\n")
    gdb.expect("Report the Linux Version of the current kernel")
    gdb.expect(PROMPT)
    for each in FIRST:
        gdb.sendline(each)
    gdb.expect("No breakpoints or watchpoints.")
    assert has_all(str(gdb.before), kernel)


@pytest.mark.parametrize("options", [(), ("-i=mi",), ("--interpreter", "mi")])
def test_commands_from_a_pipe_find_everything(start: Start, kernel: Kernel, options: tuple[str, ...]) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    line = argv(attachment(machine, batch=False, program=("gdb", *options)))
    typed = "".join(f"{each}\n" for each in FIRST).encode()
    done = process.run(line, deadline=Deadline.after(SECONDS), stdin=typed)
    assert has_all(done.stdout.replace('\\"', '"'), kernel), done


def test_a_hook_of_the_user_finds_the_scripts_at_the_first_stop(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Kernel
) -> None:
    machine = start(halt=False)
    assert at_its_shell(machine)
    (tmp_path / ".gdbinit").write_text("define hook-stop\nlx-version\nend\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = batch(machine, init=True)
    assert done.status == 0, done.stderr
    assert f"Linux version {kernel.release} " in done.stdout


def continue_(machine: Vm, gdb: pexpect.spawn) -> None:
    with machine.connected(timeout=30) as qmp, qmp.listen("RESUME") as heard:
        gdb.sendline("continue")
        heard.next()


def test_a_person_interrupts_with_ctrl_c_and_quitting_lets_the_guest_run_on(
    terminal: tuple[Vm, pexpect.spawn],
) -> None:
    machine, gdb = terminal
    assert machine.status() == "paused"
    # QEMU ignores a Ctrl-C that arrives before the guest runs.
    continue_(machine, gdb)
    gdb.sendintr()
    gdb.expect("Program received signal SIGINT")
    gdb.expect(PROMPT)
    gdb.sendline("quit")
    gdb.expect("will be detached")
    gdb.sendline("y")
    gdb.expect(pexpect.EOF)
    assert machine.status() == "running"


def test_the_guest_runs_on_when_the_terminal_is_closed(terminal: tuple[Vm, pexpect.spawn]) -> None:
    machine, gdb = terminal
    gdb.sendline("break do_sys_openat2")
    gdb.expect("Breakpoint 1 at")
    gdb.expect(PROMPT)
    continue_(machine, gdb)
    gdb.kill(signal.SIGHUP)
    gdb.expect(pexpect.EOF)
    assert opens_a_file(machine)


def test_a_second_one_is_refused_until_the_first_has_ended_even_by_kill_9(
    terminal: tuple[Vm, pexpect.spawn],
) -> None:
    machine, gdb = terminal
    lock = machine.rundir.attach_lock
    with (
        pytest.raises(StateError, match=f"attached to vm: pid {gdb.pid} \\(gdb\\)"),
        VmOwner.claim(lock, "vm"),
    ):
        pass
    gdb.sendline("shell sleep 600 >/dev/null 2>&1 & echo $! =")
    gdb.expect(r"(\d+) =")
    left = int(gdb.match[1])
    try:
        gdb.kill(signal.SIGKILL)
        gdb.wait()
        with VmOwner.claim(lock, "vm"):
            pass
    finally:
        os.kill(left, signal.SIGKILL)
    assert batch(machine, "vmd-status").status == 0, "the next GDB finds the guest as it should be"


def test_at_a_prompt_a_deadline_leaves_the_person_there(terminal: tuple[Vm, pexpect.spawn]) -> None:
    _, gdb = terminal
    gdb.sendline("vmd-until start_kernel 0.2")
    gdb.expect("start_kernel was not reached within 0.2 s")
    gdb.expect(PROMPT)
    gdb.sendline("info breakpoints")
    assert gdb.expect([r"No breakpoints(?:,| or) watchpoints", PROMPT]) == 0


SCRIPT = """
import sys
from vmdebug import session
from vmdebug.errors import GuestDiedError, StateError
with session.attach(sys.argv[1]) as attached:
    gdb = attached.gdb
    try:
        gdb.detach()
    except StateError as error:
        print(error.message)
    gdb.breakpoint("vfs_read")
    attached.console.sendline("cat /etc/passwd")
    stop = gdb.cont()
    print(stop.frame.function, flush=True)
"""


def test_a_script_works_in_a_persons_gdb_and_takes_its_breakpoints_along(
    terminal: tuple[Vm, pexpect.spawn],
) -> None:
    machine, gdb = terminal
    argv = [sys.executable, "-c", SCRIPT, machine.name]
    gdb.sendline("vmd-share")
    gdb.expect(PROMPT)
    with process.spawn(argv, stdout=process.PIPE) as script:
        gdb.expect(r"shares this GDB\]")
        assert script.stdout is not None
        refused = f"detach: a person shares this GDB, pid {gdb.pid}, and its guest is theirs"
        assert script.stdout.read() == f"{refused}\nvfs_read\n".encode()
        gdb.expect("Breakpoint 1, vfs_read")
        script.wait()
    gdb.expect(r"has ended\]")
    gdb.sendline("info breakpoints")
    gdb.expect(r"No breakpoints(?:,| or) watchpoints")
    gdb.sendline("print 40 + 2")
    gdb.expect_exact("= 42")


WHILE_IT_RUNS = """
import sys
from vmdebug import session
with session.attach(sys.argv[1]) as attached:
    with attached.gdb.trace("vfs_read") as hits:
        attached.exec("cat /etc/passwd", check=True)
    print(len(hits) > 0, attached.gdb.state.name)
"""


def test_a_script_works_in_a_persons_gdb_while_the_guest_runs(
    terminal: tuple[Vm, pexpect.spawn],
) -> None:
    machine, gdb = terminal
    gdb.sendline("vmd-share")
    gdb.expect(PROMPT)
    continue_(machine, gdb)
    argv = [sys.executable, "-c", WHILE_IT_RUNS, machine.name]
    done = process.run(argv, deadline=Deadline.after(SECONDS), check=False)
    assert done.stdout == "True RUNNING\n", done.stderr
    gdb.expect(r"has ended\]")
    assert machine.status() == "running"


KILLED = """
import os, signal, sys
from vmdebug import session
with session.attach(sys.argv[1]) as attached:
    attached.gdb.breakpoint("kernel_restart")
    attached.gdb.cont(wait=False)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_script_has_planted_is_taken_out_and_the_guest_runs_on(
    terminal: tuple[Vm, pexpect.spawn],
) -> None:
    machine, gdb = terminal
    gdb.sendline("vmd-share")
    gdb.expect(PROMPT)
    with process.spawn([sys.executable, "-c", KILLED, machine.name]) as script:
        assert script.wait() == -signal.SIGKILL
    gdb.expect(r"has ended; the guest runs on\]")
    gdb.expect(PROMPT)
    assert machine.status() == "running"
    gdb.sendline("interrupt")
    gdb.expect("Program received signal SIGINT")
    gdb.sendline("info breakpoints")
    gdb.expect(r"No breakpoints(?:,| or) watchpoints")
    gdb.sendline("show pagination")
    gdb.expect("State of pagination is on")
