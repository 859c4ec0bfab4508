"""Templates and clones of real guests."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import guest, process
from vmdebug.deadline import Deadline
from vmdebug.debugger.preloaded import PreloadedGdb
from vmdebug.errors import HostError, StateError, VmError
from vmdebug.guest import LaunchSpec, OwnMachine
from vmdebug.session import DebugSession
from vmdebug.vm import Vm, every, find, launch, memfd, runtime_directory, template_registry, wait_shell
from vmdebug.vm.clones import clone as cloning
from vmdebug.vm.clones import saved_guest
from vmdebug.vm.clones.template import Template, template

MIB = 256


def soon() -> Deadline:
    return Deadline.after(SECONDS)


@pytest.fixture
def small(builtin: LaunchSpec) -> LaunchSpec:
    return msgspec.structs.replace(builtin, name="vm", memory=MIB)


@pytest.fixture
def made_template(small: LaunchSpec) -> Iterator[Template]:
    with template(small, timeout=SECONDS) as made:
        yield made


def nothing_is_left() -> bool:
    every()
    return not runtime_directory.location().exists()


def test_three_clones_at_once_have_live_shells_and_states_of_their_own(made_template: Template) -> None:
    assert made_template.how == "clone"
    vms = [made_template.clone(timeout=SECONDS) for _ in range(3)]
    try:
        assert [vm.name for vm in vms] == ["vm", "vm-2", "vm-3"]
        assert {vm.status() for vm in vms} == {"running"}
        assert len({vm.state.gdb for vm in vms}) == 3
        for vm in vms:
            vm.exec(f"echo {vm.name} >/tmp/name", check=True)
        assert [vm.exec("cat /tmp/name").stdout for vm in vms] == ["vm\n", "vm-2\n", "vm-3\n"]
        # Each has its own random numbers once its kernel has reseeded.
        assert len({vm.exec("sleep 2; head -c 16 /dev/urandom | md5sum").stdout for vm in vms}) == 3
    finally:
        for vm in vms:
            vm.stop(force=True)


def test_a_clone_is_a_vm_like_any_other(made_template: Template) -> None:
    with made_template.clone(name="copy", timeout=SECONDS) as vm:
        facts = find("copy").facts()
        assert (facts["status"], facts["clone_of"], facts["owner"]) == ("running", "vm", os.getpid())
        # Its log starts with the template's boot, and continues with its own output.
        vm.exec("echo cloned >/dev/console")
        log = vm.rundir.console_log.read_bytes()
        assert log.index(b"Linux version") < log.index(b"cloned")
        with DebugSession(vm, owned=False) as session:
            session.gdb.breakpoint("do_sys_openat2")
            session.console.sendline("cat /etc/passwd")
            assert session.gdb.cont(timeout=SECONDS).frame.function == "do_sys_openat2"


def test_gdb_loads_its_symbols_while_a_clone_comes_up(made_template: Template) -> None:
    with PreloadedGdb.start(made_template.spec.kernel) as preloaded:
        with DebugSession(made_template.clone(timeout=SECONDS), owned=True, preloaded=preloaded) as session:
            assert session.gdb.breakpoint("do_sys_openat2").number
            early = session.gdb.pid
        assert preloaded.take() is None
    with PreloadedGdb.start(made_template.spec.kernel) as unused:
        pass
    assert unused.take() is None
    assert process.ProcessRef.of(early) is None


def test_clones_share_the_memory_that_they_do_not_write_to(made_template: Template) -> None:
    with made_template.clone(timeout=SECONDS) as vm:
        assert private_mib(vm) < MIB / 4


def private_mib(vm: Vm) -> float:
    """Return the memory that only this process uses, without file pages that others may share."""
    text = Path(f"/proc/{vm.state.pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_Dirty: +(\d+) kB", text, re.MULTILINE))) / 1024


def test_a_template_is_gone_with_its_last_holder(small: LaunchSpec) -> None:
    with template(small, timeout=SECONDS) as first, template(small, timeout=SECONDS) as second:
        assert len(list((runtime_directory.location() / template_registry.DIRECTORY).iterdir())) == 1
        # The second process uses the template of the first: the guest has booted once.
        with first.clone(timeout=SECONDS) as one, second.clone(timeout=SECONDS) as other:
            assert boot(one) == boot(other)
    assert nothing_is_left()


def boot(vm: Vm) -> str:
    """Return the times of the first kernel messages, which differ between boots."""
    return vm.exec("dmesg | head -n 60", check=True).stdout


USER = """\
import sys
from pathlib import Path
from vmdebug import guest
from vmdebug.guest import LaunchSpec
from vmdebug.vm.clones.template import template
spec = guest.decode(Path(sys.argv[1]).read_bytes(), LaunchSpec)
with template(spec, timeout=120) as made:
    vm = made.clone(timeout=120)
    print(vm.state.pid, vm.exec("dmesg | head -n 60 | md5sum").stdout, flush=True)
    sys.stdin.read()
    vm.stop()
"""


@pytest.fixture
def user(small: LaunchSpec, tmp_path: Path) -> list[str]:
    """A process that keeps the template and a clone until its input ends."""
    (tmp_path / "spec.json").write_bytes(guest.encode(small))
    return [sys.executable, "-c", textwrap.dedent(USER), str(tmp_path / "spec.json")]


def test_processes_that_want_the_same_template_share_one(user: list[str]) -> None:
    with (
        process.spawn(user, stdin=process.PIPE, stdout=process.PIPE) as one,
        process.spawn(user, stdin=process.PIPE, stdout=process.PIPE) as other,
    ):
        boots = set()
        for each in (one, other):
            assert each.stdout is not None
            boots.add(each.stdout.readline().split()[1])
        assert len(boots) == 1
        for each in (one, other):
            assert each.stdin is not None
            each.stdin.close()
            assert each.wait() == 0
    assert nothing_is_left()


def test_kill_9_of_every_user_leaves_nothing(user: list[str]) -> None:
    with process.spawn(user, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdout is not None
        qemu = process.ProcessRef.of(int(child.stdout.readline().split()[0]))
        assert qemu is not None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert qemu.wait(30)
    # The memory had no name. The next look removes the entry of the registry.
    assert nothing_is_left()


def test_where_there_is_no_room_the_state_is_saved_whole(
    small: LaunchSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memfd, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemAvailable:     102400 kB\n")
    with template(small, timeout=SECONDS) as made:
        assert (made.how, made.reason) == (
            "load",
            "the template of a guest with 256 MiB needs 320 MiB free, and memory has 100 MiB",
        )
        with made.clone(timeout=SECONDS) as one, made.clone(timeout=SECONDS) as other:
            one.exec("echo one >/tmp/x")
            assert other.exec("cat /tmp/x").status != 0


def test_a_guest_whose_state_qemu_cannot_save_boots_each_time(small: LaunchSpec, tmp_path: Path) -> None:
    shared = (
        *("-fsdev", f"local,id=fs0,path={tmp_path},security_model=none,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=fs0,mount_tag=tag,id=nine"),
        # Refuses like a mounted 9p share, which the builtin kernel cannot mount.
        *("-device", "ivshmem-plain,memdev=m0,master=off", "-object", "memory-backend-ram,id=m0,size=1M"),
    )
    with template(msgspec.structs.replace(small, qemu_args=shared), timeout=SECONDS) as made:
        assert made.how == "boot"
        assert made.reason.startswith("its state cannot be saved: QEMU refused migrate: ")
        with made.clone(timeout=SECONDS) as vm:
            assert vm.exec("echo up").stdout == "up\n"


def test_a_disk_has_one_writer(small: LaunchSpec, tmp_path: Path) -> None:
    machine = msgspec.structs.replace(small.machine, disk=tmp_path / "disk.raw")
    assert isinstance(machine, OwnMachine)
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    with template(msgspec.structs.replace(small, machine=machine), timeout=SECONDS) as made:
        assert (made.how, made.reason) == ("boot", f"the disk {machine.disk} can have only one writer")


def test_a_directory_that_cannot_hold_memory_is_named(small: LaunchSpec) -> None:
    with (
        pytest.raises(HostError, match="cannot keep a guest's memory in /nowhere"),
        template(small, directory=Path("/nowhere"), timeout=SECONDS),
    ):
        pass
    assert nothing_is_left()


def test_a_running_vm_is_cloned_and_goes_on(small: LaunchSpec) -> None:
    with launch(small, bound=True, timeout=SECONDS) as vm:
        wait_shell.wait(vm, copy=False, deadline=soon())
        vm.exec("echo before >/tmp/x")
        clones = cloning.clone(vm, 2, timeout=SECONDS)
        try:
            assert [(each.name, each.state.owner) for each in clones] == [("vm-1", None), ("vm-2", None)]
            vm.exec("echo after >/tmp/x")
            assert {each.exec("cat /tmp/x").stdout for each in clones} == {"before\n"}
            # A clone can be cloned.
            clones += cloning.clone(clones[0], timeout=SECONDS)
            assert clones[2].name == "vm-1-1"
            clones[0].stop()
            assert clones[2].exec("cat /tmp/x").stdout == "before\n"
        finally:
            for each in clones:
                each.stop(force=True)


def test_a_clone_of_a_vm_with_a_port_has_another_one(small: LaunchSpec) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with launch(msgspec.structs.replace(small, tcp=port), bound=True, timeout=SECONDS) as vm:
        wait_shell.wait(vm, copy=False, deadline=soon())
        (clone,) = cloning.clone(vm, timeout=SECONDS)
        try:
            assert vm.state.gdb == f"127.0.0.1:{port}"
            assert clone.state.gdb.startswith("127.0.0.1:")
            assert clone.state.gdb != vm.state.gdb
        finally:
            clone.stop(force=True)


def test_a_vm_at_its_reset_vector_is_not_cloned(small: LaunchSpec) -> None:
    halted = msgspec.structs.replace(small, halt=True)
    with (
        launch(halted, bound=True, timeout=SECONDS) as vm,
        pytest.raises(StateError, match="vm cannot be cloned: it is halted"),
    ):
        cloning.clone(vm, timeout=SECONDS)


def test_a_state_that_is_none_is_refused(made_template: Template) -> None:
    broken = made_template._made.saved
    assert broken is not None
    memfd.write(broken.state, b"no state at all")
    with pytest.raises(VmError, match="vm-x"):
        saved_guest.start(broken, name="vm-x", bound=True, deadline=soon())
    assert [vm.name for vm in every()] == []
