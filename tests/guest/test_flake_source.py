"""Flakes and runner scripts with the real nix and a real kernel, resolved and debugged.

The flake is tests/fixtures/flake: plain derivations with the interface of nixpkgs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.nixfixture import FixtureFlake
from vmdebug import process, sources, vm
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, DeadlineError, MismatchError, UsageError
from vmdebug.guest import Kernel, LaunchSpec, RunnerMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.process import Completed, ProcessRef
from vmdebug.progress import Report, Step, silent

SECONDS = 240.0


def resolve(
    flake: FixtureFlake, attribute: str, *more: str, report: Report = silent, seconds: float = SECONDS
) -> LaunchSpec:
    options = GuestOptions(source=f".#{attribute}", nix_args=(*flake.nix_args, *more))
    return sources.resolve(options, report=report, deadline=Deadline.after(seconds))


def runner(spec: LaunchSpec) -> RunnerMachine:
    assert isinstance(spec.machine, RunnerMachine)
    return spec.machine


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("base-nixos", "nixos"),
        ("my-vm", "my-vm"),
        ("nixosConfigurations.my-vm", "my-vm"),
        ("nixosConfigurations.my-vm.config.system.build.vm", "my-vm"),
        ("packages.x86_64-linux.vm", "nixos"),
        ('"dotted.name"', "dotted"),
    ],
)
def test_a_system_is_found_by_its_attribute_and_named_by_itself(
    flake: FixtureFlake, kernel: Kernel, attribute: str, name: str
) -> None:
    spec = resolve(flake, attribute)
    machine = runner(spec)
    assert machine.system_name == name
    assert machine.script.name == f"run-{name}-vm"
    assert machine.script.is_relative_to(flake.store)
    assert (spec.kernel.build_id, spec.kernel.release) == (kernel.build_id, kernel.release)
    assert spec.kernel.vmlinux is not None
    assert spec.kernel.vmlinux.is_relative_to(flake.store)


@pytest.mark.parametrize("attribute", ["trap", "trap-apart", "no-variant"])
def test_the_symbols_are_those_of_the_kernel_that_the_vm_boots(
    flake: FixtureFlake, kernel: Kernel, attribute: str
) -> None:
    """The vmlinux of the wrong kernel has another build-id, which would be refused."""
    spec = resolve(flake, attribute)
    assert spec.kernel.vmlinux is not None
    assert spec.kernel.build_id == kernel.build_id


def test_symbols_that_the_flake_does_not_have_are_a_note(flake: FixtureFlake) -> None:
    spec = resolve(flake, "lost")
    # The names in the image itself remain; see `kimage.kallsyms`.
    assert spec.kernel.vmlinux is not None
    assert spec.kernel.vmlinux.parent.name == "kallsyms"
    assert "nixosConfigurations.lost.config.system.build.kernel: another kernel" in spec.notes[0]


def test_symbols_of_another_build_are_refused(flake: FixtureFlake) -> None:
    with pytest.raises(MismatchError, match="are of different builds: build-id"):
        resolve(flake, "mismatched")


def test_one_evaluation_is_enough(flake: FixtureFlake) -> None:
    steps: list[str] = []
    resolve(flake, "base-nixos", report=lambda step: steps.append(step.what))
    what = list(dict.fromkeys(steps))
    assert [step.partition(" /")[0] for step in what] == [
        "building .#base-nixos",
        "finding the derivation of",
        f"building the symbols of linux-{resolve(flake, 'base-nixos').kernel.release}",
    ]


def test_nothing_is_left_in_the_users_directory(flake: FixtureFlake) -> None:
    resolve(flake, "base-nixos")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["flake.nix", "kernel.sh", "run-vm.sh"]


def test_nixs_own_options_are_handed_through(flake: FixtureFlake) -> None:
    with pytest.raises(BuildError) as caught:
        resolve(flake, "needs-impure")
    assert "error: this needs --impure\n" in f"{caught.value.detail}\n"
    assert resolve(flake, "needs-impure", "--impure").kernel.vmlinux is not None
    without_input = dataclasses.replace(flake, nix_args=())
    with pytest.raises(BuildError) as caught:
        resolve(without_input, "base-nixos")
    assert "give-it-with-override-input" in caught.value.detail


def test_an_evaluation_that_fails_shows_nixs_own_error(flake: FixtureFlake) -> None:
    with pytest.raises(
        BuildError, match=r"building \.#broken: The option `boot\.kernelPackage' does not exist\."
    ) as caught:
        resolve(flake, "broken")
    assert "error: The option `boot.kernelPackage' does not exist.\n" in f"{caught.value.detail}\n"
    assert "@nix" not in caught.value.detail


def test_a_build_that_fails_shows_its_log_and_where_the_whole_is(flake: FixtureFlake) -> None:
    with pytest.raises(BuildError) as caught:
        resolve(flake, "fails")
    assert caught.value.detail.endswith("  CC init/main.o\n  init/main.c:1: error: no")
    command = caught.value.hint.removeprefix("read the whole log: ").split()
    log = process.run(command, deadline=Deadline.after(SECONDS))
    assert log.stdout == "CC init/main.o\ninit/main.c:1: error: no\n"


def test_an_attribute_that_does_not_exist_is_answered_with_those_that_do(flake: FixtureFlake) -> None:
    with pytest.raises(UsageError, match=r"has no nixosConfigurations\.base-nixo\n") as caught:
        resolve(flake, "base-nixo")
    assert caught.value.hint.startswith("its systems: base-nixos, ")
    assert ", layout-c" in caught.value.hint


def test_a_system_without_a_vm_and_a_derivation_that_is_none(flake: FixtureFlake) -> None:
    with pytest.raises(UsageError, match=r"has nixosConfigurations\.no-vm, but not "):
        resolve(flake, "no-vm")
    with pytest.raises(UsageError, match="should have one script bin/run-NAME-vm; found: none"):
        resolve(flake, "not-a-vm")


def test_ctrl_c_ends_nix_and_its_builder(flake: FixtureFlake) -> None:
    def interrupt(step: Step) -> None:
        if "waits: started" in step.note:
            os.kill(os.getpid(), signal.SIGINT)  # to the process, like the terminal, not to this thread

    with pytest.raises(KeyboardInterrupt):
        resolve(flake, "waits", report=interrupt)
    assert ended(flake)


def test_the_deadline_ends_nix_and_its_builder(flake: FixtureFlake) -> None:
    (flake.scratch / "builder.pid").unlink(missing_ok=True)
    with pytest.raises(DeadlineError, match="for `nix` to end"):
        resolve(flake, "waits", seconds=3)
    assert ended(flake)


def ended(flake: FixtureFlake) -> bool:
    left = flake.scratch / "builder.pid"
    builder = ProcessRef.of(int(left.read_text())) if left.exists() else None
    return builder is None or builder.wait(20)


def test_a_runner_finds_the_symbols_by_itself(flake: FixtureFlake, kernel: Kernel, tmp_path: Path) -> None:
    script = runner(resolve(flake, "my-vm")).script
    result = tmp_path / "result"
    result.symlink_to(script.parent.parent)
    for given in (result, result / "bin/run-my-vm-vm"):
        spec = sources.resolve(
            GuestOptions(source=str(given)), report=silent, deadline=Deadline.after(SECONDS)
        )
        assert runner(spec) == RunnerMachine(script=script, system_name="my-vm")
        assert spec.kernel.vmlinux is not None
        assert spec.kernel.vmlinux.is_relative_to(flake.store)
        assert spec.kernel.build_id == kernel.build_id


def vmdebug(*words: str | Path) -> Completed:
    argv = [sys.executable, "-m", "vmdebug.cli", *words]
    return process.run(argv, deadline=Deadline.after(SECONDS))


@pytest.fixture
def main_job() -> Iterator[None]:
    """Stop every VM at the end of a test."""
    yield
    vmdebug("stop", "--all", "--force")


def debug() -> None:
    done = vmdebug("attach", "--batch", "--until", "start_kernel", "-ex", "bt")
    assert "#0  start_kernel ()" in done.stdout
    assert "init/main.c:" in done.stdout
    # GDB has detached, and the guest continues.
    assert vmdebug("exec", "--", "echo", "booted").stdout == "booted\n"


@pytest.mark.usefixtures("main_job")
def test_the_main_job_on_a_flake(flake: FixtureFlake) -> None:
    override = f"{flake.nix_args[1]} {flake.nix_args[2]}"
    vmdebug("start", ".#base-nixos", "--halt", "--accel", "tcg", "--override-input", override)
    debug()


def test_a_port_is_forwarded_to_the_guest_of_a_runner(flake: FixtureFlake) -> None:
    options = GuestOptions(
        source=".#my-vm", nix_args=flake.nix_args, accel="tcg", halt=True, forward=(":22",)
    )
    spec = sources.resolve(options, report=silent, deadline=Deadline.after(SECONDS))
    with vm.launch(spec, bound=True, timeout=SECONDS) as machine:
        (nic,) = machine.facts()["net"]
        (forward,) = nic["forwards"]
        assert (nic["kind"], forward["guest"]) == ("user", 22)
        socket.create_connection(("127.0.0.1", forward["host"]), timeout=SECONDS).close()


@pytest.mark.usefixtures("main_job")
def test_the_main_job_on_a_runner_that_stays_beside_qemu(flake: FixtureFlake) -> None:
    vmdebug("start", runner(resolve(flake, "wrapped")).script, "--halt", "--accel", "tcg")
    debug()


@pytest.mark.usefixtures("main_job")
def test_the_main_job_on_a_runner_with_a_kernel_built_outside_of_nix(
    flake: FixtureFlake, kernel: Kernel
) -> None:
    """The runner's own kernel has the same contents: QEMU's command line shows which one boots."""
    assert kernel.vmlinux is not None
    script = runner(resolve(flake, "my-vm")).script
    given = ("--kernel", kernel.image, "--vmlinux", kernel.vmlinux)
    vmdebug("start", script, "--halt", "--accel", "tcg", *given)
    debug()
    (found,) = json.loads(vmdebug("status", "--json").stdout)
    command_line = Path(f"/proc/{found['pid']}/cmdline").read_text().split("\0")
    assert command_line[command_line.index("-kernel") + 1] == str(kernel.image)


def test_a_kernel_with_modules_in_a_runners_place_is_refused_before_launch(
    flake: FixtureFlake, kernel: Kernel, tmp_path: Path
) -> None:
    assert kernel.vmlinux is not None
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    (tmp_path / "arch/x86/boot/bzImage").symlink_to(kernel.image)
    (tmp_path / "vmlinux").symlink_to(kernel.vmlinux)
    config = (kernel.vmlinux.parent / ".config").read_text()
    (tmp_path / ".config").write_text(config.replace("CONFIG_9P_FS=y", "CONFIG_9P_FS=m"))
    options = GuestOptions(source=".#base-nixos", nix_args=flake.nix_args, kernel=str(tmp_path))
    with pytest.raises(
        UsageError, match=r"cannot boot \.#base-nixos: these options are not built in: CONFIG_9P_FS=m\n"
    ):
        sources.resolve(options, report=silent, deadline=Deadline.after(SECONDS))
    (tmp_path / ".config").write_text(config)
    spec = sources.resolve(options, report=silent, deadline=Deadline.after(SECONDS))
    assert (spec.kernel.build_id, runner(spec).kernel_override) == (kernel.build_id, True)
