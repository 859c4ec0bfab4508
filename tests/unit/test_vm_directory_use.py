from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, StateError, UsageError, VmdebugError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.process import ProcessRef
from vmdebug.vm import directory_use, registry, runtime_directory, state
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import Launching, State

GONE = ProcessRef(2**22 + 1, 1)
"""No process has this pid: it is above the limit."""


def soon() -> Deadline:
    return Deadline.after(20)


def me() -> ProcessRef:
    ref = ProcessRef.of(os.getpid())
    assert ref is not None
    return ref


@pytest.fixture
def qemu() -> Iterator[ProcessRef]:
    """Replaces QEMU: a process in its own session."""
    child = process.start(["sleep", "1000"], session=True)
    ref = ProcessRef.of(child.pid)
    assert ref is not None
    yield ref
    process.end_group(child)


def some_state(name: str, qemu: ProcessRef = GONE, owner: ProcessRef | None = None) -> State:
    return State(
        spec=LaunchSpec(
            name=name,
            guest="builtin",
            machine=OwnMachine(),
            kernel=Kernel(arch="x86_64", image=Path("/bzImage"), origin="a test"),
        ),
        qemu=qemu,
        leader=qemu,
        accel="tcg",
        reason="asked for",
        argv=("qemu",),
        env={},
        owner=owner,
        gdb="/gdb.sock",
        started_at=1.0,
    )


def put(
    name: str,
    *,
    launcher: ProcessRef | None = GONE,
    there: State | None = None,
    guardian: ProcessRef = GONE,
    scratch: Path | None = None,
    prewarmed: bool = False,
) -> RunDir:
    """Make a run directory like a launch."""
    runtime_directory.location().mkdir(mode=0o700, exist_ok=True)
    directory = RunDir(runtime_directory.location() / name)
    directory.path.mkdir(mode=0o700)
    if launcher is not None:
        who = Launching(launcher=launcher, guardian=guardian, scratch=scratch, prewarmed=prewarmed)
        state.write(directory.launching, who)
    if there is not None:
        state.write(directory.state, there)
    return directory


def reserve(name: str, *, exact: bool = True, scratch: bool = False) -> RunDir:
    return directory_use.reserve(name, exact=exact, guardian=GONE, scratch=scratch, deadline=soon())


def a_qemu_of(directory: RunDir) -> process.Child:
    """Start a process with the pidfile in its command line; its output shows that /proc has that line."""
    words = ["sh", "-c", "echo started; while :; do sleep 1000; done", str(directory.pidfile)]
    child = process.start(words, stdout=process.PIPE, session=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"started\n"
    return child


def clear_all() -> None:
    for entry in list(runtime_directory.location().iterdir()):
        runtime_directory.remove(entry)


@pytest.fixture(autouse=True)
def _cleared(runtime: Path) -> Iterator[None]:
    """The runtime directory of a test that may leave directories in it."""
    yield
    if runtime_directory.location().exists():
        clear_all()


def test_a_reserved_directory_names_its_launcher_from_the_start() -> None:
    directory = reserve("vm")
    assert state.read_launching(directory.launching) == Launching(launcher=me(), guardian=GONE)
    assert directory_use.inspect(directory).use == "launching"


def test_a_prewarmed_vm_is_marked_from_the_start() -> None:
    directory = directory_use.reserve(
        "vm", exact=True, guardian=GONE, scratch=False, prewarmed=True, deadline=soon()
    )
    assert directory_use.inspect(directory).prewarmed


def test_without_a_name_a_prewarmed_vm_is_never_meant(qemu: ProcessRef) -> None:
    put("vm", there=some_state("vm", qemu))
    put("prewarmed", there=some_state("prewarmed", qemu), prewarmed=True)
    assert registry.find().name == "vm"


def test_a_scratch_directory_is_made_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    directory = reserve("vm", scratch=True)
    launching = state.read_launching(directory.launching)
    assert launching is not None
    assert launching.scratch == directory.scratch
    assert directory.scratch.is_dir()


def test_a_scratch_directory_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(HostError):
        reserve("vm", scratch=True)
    assert not runtime_directory.location().exists()


def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise HostError("No space left on device")

    monkeypatch.setattr(state, "write", full)
    with pytest.raises(HostError):
        reserve("vm")
    assert not runtime_directory.location().exists()


def test_a_taken_name_is_refused_with_the_pid_and_the_two_ways_out(qemu: ProcessRef) -> None:
    put("vm", there=some_state("vm", qemu))
    with pytest.raises(UsageError) as caught:
        reserve("vm")
    assert f"its QEMU has pid {qemu.pid}" in caught.value.message
    assert "vmdebug stop vm" in caught.value.hint
    assert "name=" in caught.value.hint


def test_a_default_name_gives_way(qemu: ProcessRef) -> None:
    put("vm", there=some_state("vm", qemu))
    assert reserve("vm", exact=False).name == "vm-2"
    assert reserve("vm", exact=False).name == "vm-3"


def test_a_launch_that_is_going_on_has_its_name() -> None:
    reserve("vm")
    with pytest.raises(UsageError, match=f"process {os.getpid()} is starting it"):
        reserve("vm")


@pytest.mark.parametrize("launcher", [GONE, None])
def test_a_launch_that_was_cut_short_has_not(launcher: ProcessRef | None) -> None:
    old = put("vm", launcher=launcher)
    (old.path / "old").touch()
    assert not (reserve("vm").path / "old").exists()


def test_a_vm_that_has_ended_has_not() -> None:
    put("vm", there=some_state("vm"))
    assert reserve("vm").name == "vm"


def test_one_that_its_owner_still_holds_has(qemu: ProcessRef) -> None:
    put("vm", launcher=qemu, there=some_state("vm", owner=qemu))
    with pytest.raises(UsageError, match=f"process {qemu.pid} still holds it"):
        reserve("vm")


def test_an_ended_vm_is_listed_once() -> None:
    put("vm", there=some_state("vm"))
    found = registry.every()
    assert [(vm.name, vm.status()) for vm in found] == [("vm", "exited")]
    assert found[0].facts()["status"] == "exited"
    assert registry.every() == []
    assert not runtime_directory.location().exists()
    assert found[0].stop() == "gone"


def test_a_panicked_vm_is_listed_as_such() -> None:
    directory = put("vm", there=some_state("vm"))
    directory.console_log.write_text("[    1.0] Kernel panic - not syncing: x\n")
    assert [vm.status() for vm in registry.every()] == ["panicked"]


@pytest.mark.parametrize("runstate", ["running", "paused", "debug"])
def test_a_panic_that_qemu_knows_nothing_of_is_seen_on_the_console(
    qemu: ProcessRef, monkeypatch: pytest.MonkeyPatch, runstate: str
) -> None:
    directory = put("vm", there=some_state("vm", qemu))
    vm = registry.find("vm")
    monkeypatch.setattr(vm, "qmp", lambda _command, **_: {"status": runstate})
    assert vm.status() != "panicked"
    directory.console_log.write_text("[    1.0] Kernel panic - not syncing: x\n")
    assert vm.status() == "panicked"


def test_a_vm_whose_owner_has_gone_is_killed_and_not_listed(qemu: ProcessRef) -> None:
    put("vm", there=some_state("vm", qemu, owner=GONE))
    assert registry.every() == []
    assert not qemu.alive()
    assert not runtime_directory.location().exists()


def test_a_guardian_that_is_stuck_is_killed_first(qemu: ProcessRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_use, "GUARDIAN_SECONDS", 0.05)
    put("vm", guardian=qemu)
    assert registry.every() == []
    assert not qemu.alive()


def test_a_guardian_whose_vm_another_process_ended_is_dismissed(qemu: ProcessRef) -> None:
    put("vm", launcher=me(), guardian=qemu, there=some_state("vm", owner=me()))
    assert registry.find("vm").stop() == "gone"
    assert not qemu.alive()
    assert not runtime_directory.location().exists()


def test_scratch_goes_with_its_vm(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "disk.qcow2").touch()
    put("vm", scratch=tmp_path / "scratch")
    registry.sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_cut_short_launch_whose_qemu_lives_is_ended() -> None:
    directory = put("vm")
    child = a_qemu_of(directory)
    try:
        directory.pidfile.write_text(f"{child.pid}\n")
        registry.sweep()
        assert child.wait(10) == -signal.SIGKILL
    finally:
        process.end_group(child)


def test_a_process_that_has_the_pid_by_now_is_left_alone(qemu: ProcessRef) -> None:
    # QEMU's command line has the pidfile; the one of this process has not.
    directory = put("vm")
    directory.pidfile.write_text(f"{qemu.pid}\n")
    registry.sweep()
    assert qemu.alive()


def test_what_another_vmdebug_started_is_a_problem_and_no_obstacle(qemu: ProcessRef) -> None:
    put("good", there=some_state("good", qemu))
    bad = put("newer")
    child = a_qemu_of(bad)
    try:
        bad.pidfile.write_text(f"{child.pid}\n")
        newer = msgspec.structs.replace(some_state("newer"), layout=99)
        state.write(bad.state, newer)
        survey = registry.sweep()
        assert [vm.name for vm in survey.vms] == ["good"]
        assert ["layout 99" in problem.message for problem in survey.problems] == [True]
        with pytest.raises(VmdebugError, match="layout 99"):
            registry.find("newer")
        assert child.poll() is None
    finally:
        process.end_group(child)
    assert registry.sweep().problems == ()
    assert not bad.path.exists()


def test_a_vm_is_found_by_its_name_or_as_the_only_one(qemu: ProcessRef) -> None:
    put("one", there=some_state("one", qemu))
    put("ended", there=some_state("ended"))
    assert registry.find("one").name == "one"
    assert registry.find().name == "one"
    assert registry.find("ended").status() == "exited"
    assert registry.names() == ["ended", "one"]


def test_the_only_one_that_has_ended_is_found_for_its_log() -> None:
    put("ended", there=some_state("ended"))
    assert registry.find().name == "ended"


def test_several_are_listed(qemu: ProcessRef) -> None:
    for name in ("one", "two"):
        put(name, there=some_state(name, qemu))
    with pytest.raises(UsageError, match="2 VMs run") as caught:
        registry.find()
    assert caught.value.hint == "the VMs are: one, two"
    with pytest.raises(UsageError, match="no VM named three") as caught:
        registry.find("three")
    assert caught.value.hint == "the VMs are: one, two"


def test_none_at_all() -> None:
    for name in (None, "vm"):
        with pytest.raises(UsageError) as caught:
            registry.find(name)
        assert "vmdebug start" in caught.value.hint
    assert registry.every() == []
    assert registry.names() == []
    assert not runtime_directory.location().exists()


def test_one_that_is_being_started_is_not_there_yet() -> None:
    reserve("vm")
    with pytest.raises(StateError, match="has not started yet"):
        registry.find("vm")
    assert registry.every() == []
    assert (runtime_directory.location() / "vm").is_dir()


def test_stop_does_not_touch_a_later_vm_of_the_same_name(qemu: ProcessRef) -> None:
    put("vm", there=some_state("vm"))
    earlier = registry.find("vm")
    registry.every()
    put("vm", there=some_state("vm", qemu))
    assert earlier.stop() == "gone"
    assert qemu.alive()
    assert registry.find("vm").state.qemu == qemu


def test_a_file_beside_the_vms_is_left_alone(runtime: Path) -> None:
    runtime_directory.location().mkdir(mode=0o700)
    (runtime_directory.location() / "file").touch()
    assert registry.every() == []
    (runtime_directory.location() / "file").unlink()


def test_force_kills_at_once(qemu: ProcessRef) -> None:
    put("vm", there=some_state("vm", qemu))
    assert registry.find().stop(force=True) == "SIGKILL"
    assert not qemu.alive()
    assert not runtime_directory.location().exists()


def test_the_ladder_goes_on_where_qmp_is_gone(qemu: ProcessRef) -> None:
    put("vm", there=some_state("vm", qemu))
    assert registry.find().stop() == "SIGTERM"
    assert not qemu.alive()


def test_the_ladder_ends_with_sigkill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmdebug.vm.machine.QUIT_SECONDS", 0.1)
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    child = process.start(["sh", "-c", f"trap '' TERM; echo > {ready}; sleep 1000"], session=True)
    ready.read_text()
    stubborn = ProcessRef.of(child.pid)
    assert stubborn is not None
    put("vm", there=some_state("vm", stubborn))
    assert registry.find().stop() == "SIGKILL"
    assert child.wait(10) == -signal.SIGKILL
