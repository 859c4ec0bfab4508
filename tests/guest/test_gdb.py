"""GDB on a real kernel, from the reset vector to a shell, with the Python API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import vm
from vmdebug.deadline import Deadline
from vmdebug.debugger import stop
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.identity import Wanted
from vmdebug.debugger.runstate import State
from vmdebug.errors import GuestDiedError, StateError
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.vm import Vm

ARPHRD_LOOPBACK = 772
"""include/uapi/linux/if_arp.h"""


def soon() -> Deadline:
    return Deadline.after(SECONDS)


@pytest.fixture
def machine(builtin: LaunchSpec) -> Iterator[Vm]:
    """The builtin guest with two CPUs, halted."""
    spec = msgspec.structs.replace(builtin, halt=True, cpus=2)
    with vm.launch(spec, bound=True, timeout=SECONDS) as started:
        yield started


@pytest.fixture
def gdb(machine: Vm, kernel: Kernel) -> Iterator[Gdb]:
    """A GDB on it, which interrupts through the VM."""
    with Gdb.start(kernel.vmlinux) as started:
        wanted = Wanted(kernel=kernel, accel=machine.state.accel)
        started.connect(machine.state.gdb, interrupter=machine.pause, wanted=wanted)
        yield started


def test_from_the_reset_vector_to_a_system_call(gdb: Gdb, machine: Vm) -> None:
    breakpoint_ = gdb.breakpoint("start_kernel")
    where = gdb.cont(timeout=SECONDS)
    assert where.breakpoint is breakpoint_
    assert where.frame.function == "start_kernel"
    assert Path(where.frame.file).name == "main.c"
    assert where.backtrace()[1].function == "x86_64_start_reservations"
    breakpoint_.delete()

    gdb.breakpoint("do_sys_openat2", when="dfd == -100")
    where = gdb.cont(timeout=SECONDS)
    assert where.reason == stop.BREAKPOINT
    assert int(where.frame.arg("dfd")) == -100
    assert where.frame.arg("filename").string_().startswith("/")
    assert set(where.frame.arg("how").deref_().to_python_()) == {"flags", "mode", "resolve"}
    assert [thread.cpu for thread in gdb.threads()] == [0, 1]
    frames = [frame.function for frame in where.backtrace()]
    assert frames.index("do_syscall_64") > frames.index("do_sys_openat2")


def test_a_whole_task_of_the_running_kernel(gdb: Gdb) -> None:
    gdb.breakpoint("do_sys_openat2", temporary=True)
    gdb.cont(timeout=SECONDS)
    swapper = gdb.evaluate("init_task")
    assert (int(swapper.pid), swapper.comm.string_()) == (0, "swapper/0")
    init = swapper.tasks.next.container_of_("struct task_struct", "tasks")
    assert (int(init.pid), init.comm.string_()) == (1, "init")
    assert int(init.parent) == swapper.address_
    assert int(init.mm.mm_users.counter) >= 1
    task = init.deref_().to_python_()
    assert (task["pid"], task["comm"], task["parent"]) == (1, "init", swapper.address_)
    assert task["exit_state"] == 0
    assert isinstance(task["se"]["vruntime"], int)


def test_members_of_a_device_and_of_a_net_device(gdb: Gdb) -> None:
    """`type` is the kernel's member; `type_` is the C type of the value."""
    gdb.breakpoint("device_add", when="dev->type != 0", temporary=True)
    frame = gdb.cont(timeout=SECONDS).frame
    dev, other = frame.arg("dev"), frame.evaluate("*dev")
    assert (dev.type_, other.type_) == ("struct device *", "struct device")
    assert dev.type == other.type
    assert dev.type == frame.evaluate("dev->type")
    assert dev.type != 0
    assert dev.type.type_ == "const struct device_type *"
    assert dev["class"] == frame.evaluate("dev->class")

    gdb.breakpoint("do_sys_openat2", temporary=True)
    gdb.cont(timeout=SECONDS)
    loopback = gdb.evaluate("init_net.loopback_dev")
    assert loopback.type_ == "struct net_device *"
    assert loopback.type == ARPHRD_LOOPBACK
    assert loopback.name == "lo"
    assert loopback.dev["class"] == gdb.evaluate("&net_class")


def test_interrupting_what_runs(gdb: Gdb, machine: Vm) -> None:
    gdb.breakpoint("start_kernel", temporary=True)
    gdb.cont(timeout=SECONDS)
    for _ in range(3):
        gdb.cont(wait=False)
        assert gdb.interrupt(timeout=SECONDS).signal == "SIGINT"
        assert gdb.stopped


def test_detaching_leaves_a_guest_that_boots_to_its_shell(gdb: Gdb, machine: Vm) -> None:
    gdb.breakpoint("start_kernel")
    gdb.breakpoint("do_sys_openat2")
    gdb.cont(timeout=SECONDS)
    gdb.detach()
    assert gdb.state is State.DETACHED
    with machine.console() as console:
        console.wait_ready(timeout=SECONDS)
        assert console.line.shell.execute("echo alive", deadline=soon()).stdout == b"alive\n"
    with pytest.raises(StateError, match="it is detached"):
        gdb.cont()


def test_a_breakpoint_in_a_guest_at_its_shell(gdb: Gdb, machine: Vm) -> None:
    gdb.cont(wait=False)
    with machine.console() as console:
        console.wait_ready(timeout=SECONDS)
        with gdb.breakpoint("do_sys_openat2", when='$_streq(filename, "/etc/nosuch")') as opened:
            console.sendline("cat /etc/nosuch")
            where = gdb.wait_stop(timeout=SECONDS)
            assert where.breakpoint is opened
            assert where.frame.arg("filename").string_() == "/etc/nosuch"
            assert opened.hits == 1
        gdb.cont(wait=False)
        assert console.line.shell.execute("echo on", deadline=soon()).stdout == b"on\n"


def test_the_vm_ended_under_gdb(gdb: Gdb, machine: Vm) -> None:
    gdb.cont(wait=False)
    machine.stop(force=True)
    with pytest.raises(GuestDiedError):
        gdb.wait_stop(timeout=SECONDS)
