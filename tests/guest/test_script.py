"""Scripts with a session on a real kernel: modules, panics, callbacks, per-CPU data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import vmd_module_files

from tests.fixtures.accel import SECONDS
from vmdebug import vm
from vmdebug.channel.shell import Job
from vmdebug.debugger import stop
from vmdebug.debugger.stop import Stop
from vmdebug.errors import GdbError, StateError
from vmdebug.guest import LaunchSpec, OwnMachine
from vmdebug.session import DebugSession
from vmdebug.sources import cpio
from vmdebug.vm.rundir import SHELL_PORTS


@pytest.fixture
def session(builtin: LaunchSpec, tmp_path: Path) -> Iterator[DebugSession]:
    """The builtin guest with three CPUs, /brd.ko and /lkdtm.ko, at its shell."""
    assert isinstance(builtin.machine, OwnMachine)
    assert builtin.machine.initrd is not None
    assert builtin.kernel.modules is not None
    found = vmd_module_files.index([builtin.kernel.modules])
    files = [cpio.file(f"{name}.ko", found[name].read_bytes()) for name in ("brd", "lkdtm")]
    initrd = tmp_path / "initrd"
    initrd.write_bytes(builtin.machine.initrd.read_bytes() + cpio.archive(files))
    machine = msgspec.structs.replace(builtin.machine, initrd=initrd)
    spec = msgspec.structs.replace(builtin, machine=machine, cpus=3)
    with (
        vm.launch(spec, bound=True, timeout=SECONDS) as started,
        DebugSession(started, owned=False) as opened,
    ):
        opened.console.wait_ready(timeout=SECONDS)
        yield opened


def test_a_module_that_exec_loads_stops_in_its_init(session: DebugSession) -> None:
    gdb = session.gdb
    init = gdb.breakpoint("brd_init", pending=True)
    gdb.cont(wait=False)
    with pytest.raises(StateError, match="the guest has stopped: breakpoint-hit in brd_init at ") as raised:
        session.exec("insmod /brd.ko", timeout=SECONDS)
    assert "gdb.wait_stop() returns that stop" in raised.value.hint
    where = gdb.wait_stop(timeout=SECONDS)
    assert where.breakpoint == init
    assert (where.frame.function, Path(where.frame.file).name) == ("brd_init", "brd.c")
    assert where.frame.line > 0
    assert int(where.frame.evaluate("rd_nr")) > 0
    caller = where.backtrace()[1]
    assert caller.function == "do_one_initcall"
    assert int(caller.arg("fn")) == int(gdb.evaluate("brd_init"))
    assert gdb.breakpoints() == (init,)
    gdb.cont(wait=False)
    assert session.exec("grep -c brd /proc/modules", timeout=SECONDS).stdout == "1\n"


def test_more_commands_that_a_stop_interrupts_than_there_are_ports(session: DebugSession) -> None:
    """Each goes on with the guest, and leaves its port when it has ended. One mkdir makes one stop."""
    gdb = session.gdb
    made = gdb.breakpoint("do_mkdirat")
    for _ in range(SHELL_PORTS + 2):
        gdb.cont(wait=False)
        with pytest.raises(StateError, match="the guest has stopped: breakpoint-hit in do_mkdirat"):
            session.exec("mkdir /tmp/it", timeout=SECONDS)
        assert gdb.wait_stop(timeout=SECONDS).breakpoint == made
    made.delete()
    gdb.cont(wait=False)
    assert session.exec("echo next", timeout=SECONDS).stdout == "next\n"


def test_a_module_of_ones_own_has_a_directory_of_its_own(session: DebugSession, tmp_path: Path) -> None:
    """It is set once, before the module is loaded; the kernel's own modules are still found."""
    modules = session.vm.state.spec.kernel.modules
    assert modules is not None
    own, kernels = tmp_path / "own", tmp_path / "kernel's"
    for directory, name in ((own, "brd"), (kernels, "lkdtm")):
        directory.mkdir()
        (directory / f"{name}.ko").write_bytes(vmd_module_files.index([modules])[name].read_bytes())
    gdb = session.gdb
    gdb._modules.use((kernels,))
    gdb.load_modules(own)
    for module, init in (("brd", "brd_init"), ("lkdtm", "lkdtm_module_init")):
        planted = gdb.breakpoint(init, pending=True)
        if gdb.stopped:
            gdb.cont(wait=False)
        job = session.exec(f"insmod /{module}.ko", wait=False)
        assert gdb.wait_stop(timeout=SECONDS).breakpoint == planted
        gdb.cont(wait=False)
        assert job.result(timeout=SECONDS).status == 0


def test_a_breakpoint_in_a_module_is_hit_when_it_is_loaded_anew_elsewhere(session: DebugSession) -> None:
    session.exec("insmod /brd.ko", timeout=SECONDS, check=True)
    gdb = session.gdb
    first = gdb.breakpoint("brd_alloc")
    gdb.cont(wait=False)
    job = session.exec("rmmod brd; insmod /lkdtm.ko; insmod /brd.ko", wait=False)
    where = gdb.wait_stop(timeout=SECONDS)
    assert (where.breakpoint, where.frame.function) == (first, "brd_alloc")
    assert where.frame.pc != first.address
    gdb.delete_all()
    gdb.cont(wait=False)
    assert job.result(timeout=SECONDS).status == 0


def test_a_command_goes_on_over_stops_and_its_result_comes(session: DebugSession) -> None:
    gdb = session.gdb
    gdb.breakpoint("do_sys_openat2", when='$_streq(filename, "/etc/nosuch")')
    gdb.cont(wait=False)
    job = session.exec("cat /etc/nosuch; echo after", wait=False)
    assert gdb.wait_stop(timeout=SECONDS).frame.arg("filename").string_() == "/etc/nosuch"
    with pytest.raises(StateError, match="GDB has stopped it"):
        session.exec("true")
    gdb.cont(wait=False)
    assert job.result(timeout=SECONDS).stdout == "after\n"
    assert session.exec("echo next", timeout=SECONDS).stdout == "next\n"


def test_callbacks_are_called_while_exec_waits(session: DebugSession) -> None:
    gdb = session.gdb
    seen: list[str] = []

    def opened(where: Stop) -> None:
        seen.append(where.frame.arg("filename").string_())

    with gdb.breakpoint("do_sys_openat2", when='$_streq(filename, "/etc/nosuch")', callback=opened):
        gdb.cont(wait=False)
        done = session.exec("for i in 1 2 3; do cat /etc/nosuch; done", timeout=SECONDS)
        assert done.status == 1
    assert seen == ["/etc/nosuch"] * 3
    assert not gdb.stopped


MIGRATES = "taskset 1 taskset 2 true"
"""A task on CPU 0 that moves to CPU 1 in the middle of `sched_setaffinity`."""


def asleep_to_be(session: DebugSession) -> tuple[Stop, Job]:
    """Stop a task on CPU 0 in `sched_setaffinity`, from which it returns on CPU 1."""
    gdb = session.gdb
    with gdb.breakpoint("sched_setaffinity", ignore=1):
        gdb.cont(wait=False)
        job = session.exec(MIGRATES, wait=False)
        where = gdb.wait_stop(timeout=SECONDS)
    assert (where.frame.function, where.thread.cpu) == ("sched_setaffinity", 0)
    return where, job


def test_finish_follows_a_task_to_another_cpu(session: DebugSession) -> None:
    asleep, job = asleep_to_be(session)
    caller = asleep.backtrace()[1]
    gdb = session.gdb
    where = gdb.finish(timeout=SECONDS)
    assert where.frame.pc == caller.pc
    assert (where.reason, where.thread.cpu) == (stop.FINISHED, 1)
    assert where.breakpoint is None
    assert where.details["return-value"] == "0"
    assert int(gdb.evaluate("$")) == 0
    # Older GDBs step into a function that is inlined there; newer ones stop before it.
    functions = [frame.function for frame in where.backtrace()]
    inlined = functions[: functions.index("__x64_sys_sched_setaffinity")]
    assert inlined in ([], ["__do_sys_sched_setaffinity", "__se_sys_sched_setaffinity"])
    assert gdb.breakpoints() == ()
    gdb.cont(wait=False)
    assert job.result(timeout=SECONDS).status == 0


def test_next_follows_a_task_to_another_cpu(session: DebugSession) -> None:
    where, job = asleep_to_be(session)
    gdb = session.gdb
    seen = [where]
    while seen[-1].frame.function == "sched_setaffinity":
        seen.append(gdb.next(timeout=SECONDS))
        assert (seen[-1].reason, seen[-1].breakpoint) == (stop.STEPPED, None)
    assert [where.thread.cpu for where in seen[-2:]] == [1, 1]  # first back in the function
    gdb.cont(wait=False)
    assert job.result(timeout=SECONDS).status == 0


def test_a_breakpoint_on_the_way_ends_a_finish(session: DebugSession) -> None:
    _, job = asleep_to_be(session)
    gdb = session.gdb
    inner = gdb.breakpoint("__set_cpus_allowed_ptr", temporary=True)
    assert gdb.finish(timeout=SECONDS).breakpoint == inner
    gdb.cont(wait=False)  # nothing is left of `finish`
    assert job.result(timeout=SECONDS).status == 0


def test_warn_oops_and_panic_are_caught_before_the_kernel_says_a_word(session: DebugSession) -> None:
    gdb = session.gdb
    gdb.catch_panic(warn=True)
    gdb.cont(wait=False)
    warned = session.exec("insmod /lkdtm.ko cpoint_name=DIRECT cpoint_type=WARNING", wait=False)
    where = gdb.wait_stop(timeout=SECONDS)
    assert where.reason == stop.WARNING
    assert Path(where.frame.arg("file").string_()).name == "bugs.c"
    gdb.cont(wait=False)
    assert warned.result(timeout=SECONDS).status == 0  # commands run at the same time
    session.exec("rmmod lkdtm; insmod /lkdtm.ko cpoint_name=DIRECT cpoint_type=EXCEPTION", wait=False)
    where = gdb.wait_stop(timeout=SECONDS)
    assert where.reason == stop.OOPS
    gdb.load_modules()
    frames = where.backtrace()
    names = [frame.function for frame in frames]
    entry = names.index("asm_exc_page_fault")
    assert "page_fault_oops" in names[:entry]
    assert names[entry + 1] == "lkdtm_EXCEPTION"  # the culprit, behind the exception
    assert Path(frames[entry + 1].file).name == "bugs.c"
    assert "do_init_module" in names[entry:]
    assert names[-1].startswith("entry_SYSCALL_64")
    gdb.cont(wait=False)
    session.console.sendline("echo c > /proc/sysrq-trigger")
    where = gdb.wait_stop(timeout=SECONDS)
    assert where.reason == stop.PANIC
    assert where.frame.arg("fmt").string_() == "sysrq triggered crash\n"
    assert "write_sysrq_trigger" in [frame.function for frame in where.backtrace()]


def test_each_cpu_has_its_own(session: DebugSession) -> None:
    gdb = session.gdb
    assert [thread.cpu for thread in gdb.threads()] == [0, 1, 2]
    for cpu in range(3):
        queue = gdb.per_cpu("runqueues", cpu)
        assert queue.type_ == "struct rq"
        assert int(queue.cpu) == cpu
        assert int(gdb.per_cpu("runqueues.cpu", cpu)) == cpu
        assert queue.idle.comm.string_() == f"swapper/{cpu}"
        assert int(gdb.per_cpu("current_task", cpu).pid) >= 0
        assert gdb.backtrace(cpu)
    cache = gdb.evaluate("kmalloc_caches[0][6]")
    slab = getattr(cache, "cpu_slab", None)  # dynamically allocated per-CPU memory
    if slab is None:
        slab = cache.cpu_sheaves  # since Linux 7
    places = [slab.per_cpu_ptr_(cpu).address_ or 0 for cpu in range(3)]
    offsets = [int(gdb.evaluate(f"__per_cpu_offset[{cpu}]")) for cpu in range(3)]
    assert [(place - offset) % 2**64 for place, offset in zip(places, offsets, strict=True)] == [
        int(slab)
    ] * 3
    with pytest.raises(
        GdbError, match="`runqueues` of CPU 3 cannot be read: no CPU 3: the kernel has CPUs 0 to 2"
    ):
        gdb.per_cpu("runqueues", 3)


def test_breakpoints_see_each_cpu_and_one_alone(session: DebugSession) -> None:
    gdb = session.gdb
    gdb.breakpoint("do_sys_openat2", when='$_streq(filename, "/etc/nosuch")')
    gdb.cont(wait=False)
    for cpu in range(3):
        job = session.exec(f"taskset {1 << cpu:x} cat /etc/nosuch", wait=False)
        where = gdb.wait_stop(timeout=SECONDS)
        assert where.thread.cpu == cpu
        assert gdb.per_cpu("current_task", cpu).comm.string_() == "cat"
        gdb.cont(wait=False)
        job.result(timeout=SECONDS)
    gdb.delete_all()
    assert not gdb.stopped
    gdb.breakpoint("do_sys_openat2", when='$_streq(filename, "/etc/nosuch")', cpu=2)
    job = session.exec("for cpu in 1 2 4; do taskset $cpu cat /etc/nosuch; done", wait=False)
    assert gdb.wait_stop(timeout=SECONDS).thread.cpu == 2
    gdb.cont(wait=False)
    job.result(timeout=SECONDS)


def test_a_step_that_another_cpus_breakpoint_cuts_short_leaves_nothing_behind(session: DebugSession) -> None:
    """QEMU would keep stepping that CPU: a spurious SIGTRAP, and a halted guest without GDB."""
    gdb = session.gdb

    def cut_short() -> Job:
        with gdb.breakpoint("do_sys_openat2", when='$_streq(filename, "/etc/nosuch")'):
            gdb.cont(wait=False)
            job = session.exec("taskset 2 sh -c 'for i in $(seq 20); do cat /etc/nosuch; done'", wait=False)
            assert gdb.wait_stop(timeout=SECONDS).thread.cpu == 1
            gdb.select(1)
            while gdb.next(timeout=SECONDS).thread.cpu == 0:
                pass
        return job

    job = cut_short()
    gdb.cont(wait=False)
    job.result(timeout=SECONDS)
    gdb.interrupt()
    job = cut_short()
    gdb.detach()
    job.result(timeout=SECONDS)
    assert session.exec("echo on", timeout=SECONDS).stdout == "on\n"
