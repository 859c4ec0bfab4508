from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fixtures.accel import ACCEL, SECONDS
from vmdebug import guest, process
from vmdebug.arch import by_name
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, HostError, LaunchError, UsageError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine, RunnerMachine
from vmdebug.process import ProcessRef
from vmdebug.vm import Vm, accel, argv, every, find, launch, plan, runtime_directory

X86_64 = by_name("x86_64")
Start = Callable[..., Vm]


def soon() -> Deadline:
    return Deadline.after(SECONDS)


@pytest.fixture
def halted(builtin: LaunchSpec) -> LaunchSpec:
    """The builtin guest at its reset vector, the fastest guest to start."""
    return msgspec.structs.replace(builtin, name="vm", halt=True)


@pytest.fixture
def start(halted: LaunchSpec) -> Iterator[Start]:
    """Starts VMs, and stops them at the end of the test."""
    started: list[Vm] = []

    def starting(*, bound: bool = False, exact_name: bool = True, **changes: Any) -> Vm:
        spec = msgspec.structs.replace(halted, **changes)
        vm = launch(spec, bound=bound, exact_name=exact_name, timeout=SECONDS)
        started.append(vm)
        return vm

    yield starting
    for vm in started:
        vm.stop(force=True)


def owner(script: str, spec: LaunchSpec, place: Path) -> list[str]:
    """Return the argv of a Python that starts a guest and runs the script with `vm`."""
    (place / "spec.json").write_bytes(guest.encode(spec))
    text = f"""\
        import sys
        from pathlib import Path
        from vmdebug import guest
        from vmdebug.guest import LaunchSpec
        from vmdebug.vm import launch
        spec = guest.decode(Path({str(place / "spec.json")!r}).read_bytes(), LaunchSpec)
        def start(bound):
            return launch(spec, bound=bound, timeout={SECONDS})
        """
    return [sys.executable, "-c", textwrap.dedent(text) + textwrap.dedent(script)]


def gone(vm: Vm) -> bool:
    return not vm.state.qemu.alive() and not vm.rundir.path.exists()


def test_a_halted_vm_tells_what_it_is_and_ends_without_a_trace(start: Start, kernel: Kernel) -> None:
    vm = start()
    facts = vm.facts()
    assert facts["name"] == "vm"
    assert facts["status"] == "halted"
    assert facts["pid"] == int(vm.rundir.pidfile.read_text())
    assert facts["accel"] == ACCEL
    assert facts["kernel"] == str(kernel.image)
    assert facts["build_id"] == kernel.build_id
    assert facts["gdb"] == str(vm.rundir.gdb)
    assert Path(facts["qmp"]).is_socket()
    assert Path(facts["console_log"]).is_file()
    assert vm.stop() == "quit"
    assert gone(vm)
    assert not runtime_directory.location().exists()
    assert vm.status() == "exited"
    assert vm.stop() == "gone"


def test_it_runs_and_pauses(start: Start) -> None:
    vm = start()
    with vm.connected() as qmp, qmp.listen("RESUME", "STOP") as heard:
        qmp.execute("cont")
        assert heard.next().name == "RESUME"
        qmp.execute("stop")
        assert heard.next().name == "STOP"
    assert vm.status() == "paused"
    vm.resume()
    assert vm.status() == "running"
    vm.pause()
    assert vm.status() == "paused"
    assert vm.qmp("query-name") == {"name": "vm"}


def test_three_at_once_each_with_a_name_and_sockets_of_its_own(start: Start) -> None:
    vms = [start(exact_name=False) for _ in range(3)]
    assert [vm.name for vm in vms] == ["vm", "vm-2", "vm-3"]
    assert [vm.name for vm in every()] == ["vm", "vm-2", "vm-3"]
    assert len({vm.state.gdb for vm in vms}) == 3
    assert {vm.status() for vm in vms} == {"halted"}
    assert find("vm-2").stop() == "quit"
    assert [vm.name for vm in every()] == ["vm", "vm-3"]
    for vm in every():
        vm.stop()
    assert every() == []
    assert not runtime_directory.location().exists()


def test_launches_and_looks_at_the_same_time_do_not_meet(start: Start) -> None:
    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(every) for _ in range(3)]
        launches = [pool.submit(start, exact_name=False) for _ in range(3)]
        looks += [pool.submit(every) for _ in range(3)]
        names = {launched.result().name for launched in launches}
        for look in looks:
            assert {vm.name for vm in look.result()} <= names
    assert names == {"vm", "vm-2", "vm-3"}
    assert {vm.status() for vm in every()} == {"halted"}


def test_a_name_that_is_taken(start: Start) -> None:
    vm = start()
    with pytest.raises(UsageError, match=f"its QEMU has pid {vm.state.pid}"):
        start()
    assert vm.status() == "halted"


def test_a_port_for_gdb_on_this_machine_only(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is taken"):
            start(tcp=port)
    assert every() == []
    vm = start(tcp=port)
    assert vm.state.gdb == f"127.0.0.1:{port}"
    with socket.create_connection(("127.0.0.1", port)):
        pass


def test_a_free_port_is_found_and_told(start: Start) -> None:
    vm = start(tcp=0)
    host, _, port = vm.state.gdb.partition(":")
    assert host == "127.0.0.1"
    with socket.create_connection((host, int(port))) as gdb:
        gdb.sendall(b"$?#3f")
        assert gdb.recv(1) == b"+"


def test_kill_9_of_qemu_is_seen_listed_once_and_cleared(start: Start) -> None:
    vm, other = start(), start(name="other")
    vm.state.qemu.signal(signal.SIGKILL)
    vm.wait(timeout=SECONDS)
    assert vm.status() == "exited"
    assert ProcessRef.of(vm.state.pid) != vm.state.qemu, "a zombie was left"
    with pytest.raises(GuestDiedError):
        vm.qmp("query-status")
    assert [(one.name, one.status()) for one in every()] == [("other", "halted"), ("vm", "exited")]
    assert gone(vm)
    assert [one.name for one in every()] == ["other"]
    other.stop()


def test_kill_9_of_the_owner_ends_the_vm_and_its_directory(halted: LaunchSpec, tmp_path: Path) -> None:
    script = "vm = start(bound=True); print('up', flush=True); sys.stdin.read()"
    command = owner(script, halted, tmp_path)
    with process.spawn(command, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        vm = find("vm")
        assert vm.status() == "halted"
        assert vm.facts()["owner"] == child.pid
        child.kill()
        child.wait()
        vm.wait(timeout=SECONDS)
        assert every() == []
    assert gone(vm)
    assert not runtime_directory.location().exists()


def test_kill_9_of_owner_and_guardian_leaves_it_to_the_next_look(halted: LaunchSpec, tmp_path: Path) -> None:
    script = """\
        import os, signal
        vm = start(bound=True)
        vm._guardian.ref.signal(signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    with process.spawn(owner(script, halted, tmp_path)) as child:
        assert child.wait(60) == -signal.SIGKILL
    runs = list(runtime_directory.location().iterdir())
    assert [run.name for run in runs] == ["vm"]
    assert every() == []
    assert not runtime_directory.location().exists()


def test_a_detached_vm_outlives_who_started_it(halted: LaunchSpec, tmp_path: Path) -> None:
    with process.spawn(owner("start(bound=False)", halted, tmp_path)) as child:
        assert child.wait(60) == 0
    vm = find()
    assert vm.status() == "halted"
    assert os.getsid(vm.state.pid) == vm.state.pid
    assert vm.stop() == "quit"


def test_a_bound_vm_ends_with_its_block(start: Start) -> None:
    with start(bound=True) as vm:
        assert vm.status() == "halted"
    assert gone(vm)


def test_a_bound_vm_that_another_process_stops(start: Start) -> None:
    vm = start(bound=True)
    assert find("vm").stop() == "quit"
    later = start()
    vm.stop()
    assert later.status() == "halted", "the first one's end took a later VM of the same name along"


def test_a_qemu_that_ends_at_once_shows_its_last_words(start: Start) -> None:
    with pytest.raises(LaunchError, match="ended with status 1") as caught:
        start(qemu_args=("-device", "no-such-device"))
    assert "'no-such-device' is not a valid device model name" in caught.value.detail
    assert "-device no-such-device" in caught.value.detail
    assert not runtime_directory.location().exists()


def test_a_kernel_that_is_not_there(start: Start, kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises((LaunchError, HostError)) as caught:  # the test of KVM reads it before QEMU does
        start(kernel=msgspec.structs.replace(kernel, image=tmp_path / "nothing"))
    assert str(tmp_path / "nothing") in caught.value.message + caught.value.detail


def test_no_space_for_the_state_ends_a_qemu_that_runs_already(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which(X86_64.qemu)
    script = tmp_path / X86_64.qemu
    # The last argument but one is the option of the pidfile; the link leads to a full disk.
    script.write_text(
        "#!/bin/sh\n"
        'for word; do case $word in */qemu.pid) ln -s /dev/full "${word%/*}/state.new" ;; esac; done\n'
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match="No space left on device") as caught:
        start()
    assert "free some space" in caught.value.hint
    assert not runtime_directory.location().exists()


def test_a_runtime_directory_too_deep(start: Start, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = runtime / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(HostError, match="must not exceed 107"):
        start()
    assert list(deep.iterdir()) == []


def test_short_commands_of_several_at_once_wait_for_each_other(start: Start) -> None:
    vm = start()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: vm.qmp("query-name"), range(24)))
    assert answers == [{"name": "vm"}] * 24


def test_a_stranger_on_the_control_socket_holds_nobody_up_for_ever(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmdebug.vm.machine.QUIT_SECONDS", 0.5)
    vm = start()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(vm.rundir.control))
        stranger.recv(1)
        with pytest.raises(DeadlineError) as caught:
            vm.qmp("query-status", timeout=0.2)
        assert "one client at a time" in caught.value.hint
        assert vm.stop() == "SIGTERM"


def test_a_qemu_that_stands_still_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmdebug.vm.machine.QUIT_SECONDS", 0.2)
    vm = start()
    vm.state.qemu.signal(signal.SIGSTOP)
    with pytest.raises(DeadlineError):
        vm.qmp("query-status", timeout=0.2)
    assert vm.stop() == "SIGKILL"
    assert gone(vm)


def test_the_accelerator_is_chosen_with_the_true_reason(halted: LaunchSpec) -> None:
    found = plan(msgspec.structs.replace(halted, accel="auto"), timeout=SECONDS)
    problem = accel.obstacle(X86_64)
    if problem is not None:
        assert (found.accel, found.reason) == ("tcg", problem.message)
        with pytest.raises(HostError, match="no KVM"):
            plan(msgspec.structs.replace(halted, accel="kvm"), timeout=SECONDS)
    else:
        said = {"kvm": "printed its first message after", "tcg": "no KVM"}
        assert said[found.accel] in found.reason


def test_the_probe_hears_a_real_kernel(kernel: Kernel) -> None:
    qemu = process.find(X86_64.qemu, package="qemu-system-x86")
    command = argv.probe(qemu=qemu, arch=X86_64, accel="tcg", image=kernel.image)
    assert accel.boot(command, soon()).seconds is not None


NO_ROOT = OwnMachine()
"""Without initramfs and disk the kernel finds no root file system, and panics."""


def test_a_panic_is_told_by_the_guest_and_stops_it(start: Start) -> None:
    vm = start(machine=NO_ROOT)
    with vm.connected(timeout=SECONDS) as qmp, qmp.listen("GUEST_PANICKED") as heard:
        qmp.execute("cont")
        told = heard.next()
    assert told.data["action"] == "pause"
    assert vm.status() == "panicked"
    vm.stop()
    assert vm.status() == "panicked"


def test_a_panic_is_seen_on_the_console_of_a_guest_that_does_not_tell(start: Start) -> None:
    vm = start(machine=NO_ROOT, qemu_args=("-global", "pvpanic-pci.events=0"))
    assert "pvpanic-pci" in vm.state.argv
    with vm.console() as console:
        vm.resume()
        with pytest.raises(GuestDiedError):
            console.expect("a word that it does not say", timeout=SECONDS)
    assert vm.qmp("query-status")["status"] == "running"
    assert vm.status() == "panicked"


def test_a_panic_that_ends_qemu_is_told_from_an_exit(start: Start, halted: LaunchSpec) -> None:
    vm = start(
        machine=NO_ROOT,
        parameters=(*halted.parameters, "panic=-1"),
        qemu_args=("-global", "pvpanic-pci.events=0"),
    )
    vm.resume()
    vm.wait(timeout=SECONDS)
    assert [one.status() for one in every()] == ["panicked"]


def test_a_guest_that_reboots_has_exited(start: Start) -> None:
    vm = start(halt=False)
    with vm.console() as console:
        console.wait_ready(timeout=SECONDS)
        assert vm.status() == "running"
        with vm.connected(timeout=SECONDS) as qmp, qmp.listen("SHUTDOWN") as heard:
            console.sendline("reboot -f")
            told = heard.next()
    assert told.data["guest"] is True
    vm.wait(timeout=SECONDS)
    assert vm.status() == "exited"


def test_a_disk_is_used_and_kept(start: Start, tmp_path: Path, halted: LaunchSpec) -> None:
    disk = tmp_path / "disk, of mine"
    disk.write_bytes(bytes(1 << 20))
    assert isinstance(halted.machine, OwnMachine)
    vm = start(machine=msgspec.structs.replace(halted.machine, disk=disk), halt=False)
    with vm.console() as console:
        console.wait_ready(timeout=SECONDS)
        console.sendline("echo kept > /dev/vda; sync; echo writ''ten")
        console.expect("written", timeout=SECONDS)
    with pytest.raises(LaunchError) as caught:
        start(name="second", machine=msgspec.structs.replace(halted.machine, disk=disk))
    assert "another VM uses that disk" in caught.value.hint
    vm.stop()
    assert disk.read_bytes().startswith(b"kept\n")


# What a launch needs of nixos/modules/virtualisation/qemu-vm.nix.
RUNNER = """\
#!/bin/sh
NIX_DISK_IMAGE=$(readlink -f "${{NIX_DISK_IMAGE:-./vm.qcow2}}") || test -z "$NIX_DISK_IMAGE"
if ! test -e "$NIX_DISK_IMAGE"; then echo "made a disk"; : > "$NIX_DISK_IMAGE"; fi
if [ -z "$TMPDIR" ] || [ -z "$USE_TMPDIR" ]; then TMPDIR=$(mktemp -d); fi
cd "$TMPDIR"
{exec} {qemu} -machine accel=kvm:tcg -cpu host -name the-runner -m 128 \
    -kernel ${{NIXPKGS_QEMU_KERNEL_my_vm:-/nowhere}} \
    -append "init=/init $QEMU_KERNEL_PARAMS" $QEMU_OPTS "$@"
"""


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of scratch directories."""
    place = tmp_path / "big"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.mark.parametrize("how", ["exec", ""])
def test_a_runner_is_started_and_its_qemu_found(start: Start, tmp_path: Path, big: Path, how: str) -> None:
    script = tmp_path / "run-my-vm-vm"
    script.write_text(RUNNER.format(exec=how, qemu=shutil.which(X86_64.qemu)))
    script.chmod(0o755)
    vm = start(machine=RunnerMachine(script=script, system_name="my-vm", kernel_override=True), memory=192)
    executable = Path(f"/proc/{vm.state.pid}/exe").readlink()
    assert executable.name.startswith("qemu-system-x86_64")
    assert (vm.state.leader == vm.state.qemu) == (how == "exec")
    assert vm.status() == "halted"
    assert vm.qmp("query-name") == {"name": "the-runner"}
    assert vm.qmp("query-memory-size-summary")["base-memory"] == 192 << 20
    assert vm.rundir.qemu_log.read_text() == "made a disk\n"
    assert (vm.rundir.scratch / "disk.qcow2").is_file()
    words = Path(f"/proc/{vm.state.pid}/cmdline").read_text().split("\0")
    assert words[words.index("-append") + 1].startswith("init=/init console=ttyS0,115200 nokaslr")
    assert vm.stop() == "quit"
    assert not vm.state.leader.alive()
    assert list(big.iterdir()) == []


def test_a_runner_whose_owner_is_killed_leaves_nothing(halted: LaunchSpec, tmp_path: Path, big: Path) -> None:
    script = tmp_path / "run-my-vm-vm"
    script.write_text(RUNNER.format(exec="", qemu=shutil.which(X86_64.qemu)))
    script.chmod(0o755)
    machine = RunnerMachine(script=script, system_name="my-vm", kernel_override=True)
    spec = msgspec.structs.replace(halted, machine=machine)
    command = owner("vm = start(bound=True); print('up', flush=True); sys.stdin.read()", spec, tmp_path)
    with process.spawn(command, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        vm = find("vm")
        child.kill()
        child.wait()
        for ref in (vm.state.qemu, vm.state.leader):
            assert ref.wait(60)
    assert every() == []
    assert list(big.iterdir()) == []
