"""`vmdebug.start_node` in a NixOS test's script, with a double of the driver and real runners and kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vmdebug
from tests.fixtures.nixfixture import FixtureFlake
from tests.fixtures.nixosdriver import Driver, Machine
from vmdebug import sources
from vmdebug.deadline import Deadline
from vmdebug.guest import RunnerMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.sources.initramfs import READY
from vmdebug.vm import every

# What NixOS's test-instrumentation.nix does as a service.
_SHELL = (
    "setsid sh -c 'stty raw -echo; echo the shell is ready; exec sh /dev/hvc0' </dev/hvc0 >/dev/hvc0 2>&1 &"
)


@pytest.fixture
def driver(flake: FixtureFlake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setenv("SHARED_DIR", "")  # `start_node` sets it
    options = GuestOptions(source=".#base-nixos", nix_args=flake.nix_args)
    machine = sources.resolve(options, report=silent, deadline=Deadline.after(240)).machine
    assert isinstance(machine, RunnerMachine)
    made = Driver([str(machine.script)], tmp_path)
    yield made
    for each in made.machines:
        each.release()


@pytest.fixture
def node(driver: Driver) -> Machine:
    return driver.machines[0]


def test_a_test_script_has_breakpoints_and_the_drivers_own_methods(node: Machine) -> None:
    with vmdebug.start_node(node, halt=True, accel="tcg") as session:
        gdb = session.gdb
        gdb.breakpoint("start_kernel", temporary=True)
        assert gdb.cont(timeout=120).frame.function == "start_kernel"
        with pytest.raises(vmdebug.StateError, match=r"machine\.execute needs a running guest") as caught:
            node.succeed("true")
        assert "session.gdb.cont(wait=False)" in caught.value.hint
        gdb.cont(wait=False)
        node.wait_for_console_text(READY)
        # The agent's ports are beside the driver's console.
        session.exec(_SHELL, check=True)
        assert node.succeed("echo through the driver") == "through the driver\n"
        # Nothing else in the guest calls it: a stop before the command begins would end `exec`.
        gdb.breakpoint("version_proc_show", temporary=True)
        job = session.exec("cat /proc/version", wait=False)
        assert gdb.wait_stop(timeout=60).frame.function == "version_proc_show"
        gdb.cont(wait=False)
        assert job.result(timeout=60).status == 0
    # The session has ended; the node is still the driver's.
    assert node.succeed("echo still here") == "still here\n"
    assert node.process.poll() is None
    node.release()
    assert node.process.poll() == 0
    assert every() == []


def test_the_serial_line_is_the_drivers(node: Machine) -> None:
    session = vmdebug.start_node(node, accel="tcg")
    node.wait_for_console_text(READY)
    node.send_console("echo typed $((1 + 1))\n")
    node.wait_for_console_text("typed 2$")
    with pytest.raises(vmdebug.StateError, match="is in use by process"):
        _ = session.console


def test_a_node_is_started_again_with_its_disk(node: Machine) -> None:
    vmdebug.start_node(node, accel="tcg", halt=True)
    disk = node.state_dir / "nixos.qcow2"
    made = disk.stat().st_ino
    with pytest.raises(vmdebug.StateError, match="the node nixos is already running"):
        vmdebug.start_node(node)
    node.crash()
    assert every() == []
    session = vmdebug.start_node(node, accel="tcg", halt=True)
    assert disk.stat().st_ino == made
    assert session.status == "halted"


def test_a_failing_test_keeps_its_node_for_attach(driver: Driver, node: Machine) -> None:
    def script() -> None:
        with driver:
            vmdebug.start_node(node, keep_failed=True, accel="tcg")
            node.wait_for_console_text(READY)
            raise AssertionError("the test fails")

    with pytest.raises(AssertionError, match="the test fails"):
        script()
    assert node.said == [
        "the test failed, and its node runs on: vmdebug attach nixos; to end it: vmdebug stop nixos"
    ]
    (kept,) = every()
    try:
        session = vmdebug.attach("nixos")
        assert session.exec("echo kept").stdout == "kept\n"
        session.console.sendline("echo on the console")
        session.console.expect("\non the console", timeout=30)
        session.close()
    finally:
        kept.stop()


def test_a_test_that_passes_keeps_nothing(driver: Driver, node: Machine) -> None:
    with driver:
        vmdebug.start_node(node, keep_failed=True, halt=True, accel="tcg")
    assert every() == []
