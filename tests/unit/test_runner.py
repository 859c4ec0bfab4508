"""Runners in a store made by hand, with a fake nix."""

import lzma
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit import kernelfiles
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, MismatchError, UsageError
from vmdebug.guest import Guest, LaunchSpec, RunnerMachine, decode, encode
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.sources.configuration import requirements
from vmdebug.sources.nixos import runner

SLEEP = shutil.which("sleep")
SCRIPT = """\
#! /bin/sh
exec /usr/bin/qemu-system-x86_64 \\
    -name my-vm \\
    -kernel ${{NIXPKGS_QEMU_KERNEL_my_vm:-{toplevel}/kernel}} \\
    -initrd {toplevel}/initrd \\
    -append "$(cat {toplevel}/kernel-params) $QEMU_KERNEL_PARAMS" \\
    $QEMU_OPTS "$@"
"""


@dataclass(frozen=True)
class Made:
    result: Path
    script: Path  # the link to it, in the store
    toplevel: Path
    kernel: Path
    dev: Path
    bin: Path  # the only directory on PATH

    def nix_says(self, deriver: str, realised: str) -> None:
        for name, script in (("--query", deriver), ("--realise", realised)):
            (self.bin / name).write_text(script)
        double = self.bin / "nix-store"
        double.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{self.bin}/asked\n. {self.bin}/$3\n')
        double.chmod(0o755)

    def asked(self) -> list[str]:
        return (self.bin / "asked").read_text().splitlines()


def at(store: Path, digit: str, name: str) -> Path:
    return store / f"{digit * 32}-{name}"


@pytest.fixture(scope="session")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kernelfiles.vmlinux(tmp_path_factory.mktemp("kernel") / "vmlinux")


@pytest.fixture
def made(tmp_path: Path, vmlinux: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    store = tmp_path / "store"
    kernel, dev = at(store, "1", "linux-6.1.0"), at(store, "2", "linux-6.1.0-dev")
    kernelfiles.image(kernel / "bzImage", vmlinux)
    dev.mkdir()
    shutil.copy(vmlinux, dev / "vmlinux")
    toplevel = at(store, "3", "nixos-system-my-vm")
    (toplevel / "kernel-modules/lib/modules").mkdir(parents=True)
    (toplevel / "kernel").symlink_to(kernel / "bzImage")
    script = at(store, "4", "run-nixos-vm")
    script.write_text(SCRIPT.format(toplevel=toplevel))
    script.chmod(0o755)
    package = at(store, "5", "nixos-vm")
    (package / "bin").mkdir(parents=True)
    (package / "system").symlink_to(toplevel)
    (package / "bin/run-my-vm-vm").symlink_to(script)
    (tmp_path / "result").symlink_to(package)
    return Made(
        result=tmp_path / "result",
        script=package / "bin/run-my-vm-vm",
        toplevel=toplevel,
        kernel=kernel,
        dev=dev,
        bin=tmp_path / "bin",
    )


def resolve(location: Path, options: GuestOptions | None = None, seconds: float = 20) -> LaunchSpec:
    return runner.resolve(
        Guest(kind="runner", words="result", location=str(location)),
        options or GuestOptions(source="result"),
        report=silent,
        deadline=Deadline.after(seconds),
    )


def machine(spec: LaunchSpec) -> RunnerMachine:
    assert isinstance(spec.machine, RunnerMachine)
    return spec.machine


def test_the_symbols_are_in_the_dev_output_of_what_made_the_kernel(made: Made) -> None:
    drv = f"{made.kernel}.drv"
    made.nix_says(f"echo {drv}", f"echo {made.dev}")
    spec = resolve(made.result)
    assert spec.kernel.vmlinux == made.dev / "vmlinux"
    assert made.asked() == [
        f"--log-format internal-json --query --deriver {made.kernel}",
        f"--log-format internal-json --realise {drv}!dev",
    ]
    assert decode(encode(spec), LaunchSpec) == spec


@pytest.mark.parametrize("given", ["result", "result/bin/run-my-vm-vm"])
def test_the_script_is_named_in_the_store_and_not_by_the_link_that_the_next_build_moves(
    made: Made, given: str
) -> None:
    spec = resolve(made.result.parent / given)
    assert machine(spec) == RunnerMachine(script=made.script, system_name="my-vm")
    assert spec.kernel.image == made.kernel / "bzImage"
    assert spec.kernel.origin == "the runner result"
    assert spec.kernel.modules == made.script.parent.parent / "system/kernel-modules/lib/modules"
    assert (spec.kernel.build_id, spec.kernel.release) == (kernelfiles.ID, kernelfiles.RELEASE)


def test_the_vm_is_called_like_the_system(made: Made) -> None:
    assert resolve(made.script).name == "my-vm"


def test_the_script_file_itself_tells_its_name_and_its_kernel(made: Made) -> None:
    spec = resolve(made.script.resolve())
    assert machine(spec).system_name == "my-vm"
    assert spec.kernel.image == made.kernel / "bzImage"


def test_what_its_user_says_is_handed_on(made: Made) -> None:
    options = GuestOptions(
        source="result",
        name="other",
        halt=True,
        append="loglevel=7 quiet",
        accel="tcg",
        memory=256,
        cpus=2,
        tcp=0,
        disk=str(made.bin / "disk.qcow2"),
        qemu_args=("-device", "edu"),
    )
    spec = resolve(made.result, options)
    assert (spec.name, spec.halt, spec.accel, spec.memory, spec.cpus, spec.tcp) == (
        *("other", True, "tcg", 256, 2, 0),
    )
    assert spec.qemu_args == ("-device", "edu")
    assert machine(spec).disk == made.bin / "disk.qcow2"
    assert spec.parameters[:2] == ("console=ttyS0,115200", "nokaslr")
    assert spec.parameters[-2:] == ("loglevel=7", "quiet")


def test_another_kernel_comes_with_its_own_symbols_and_nix_is_not_asked(made: Made, vmlinux: Path) -> None:
    image = kernelfiles.image(made.bin / "arch/x86/boot/bzImage", vmlinux)
    shutil.copy(vmlinux, made.bin / "vmlinux")
    (made.bin / ".config").write_text("CONFIG_BLK_DEV_INITRD=y\n")
    spec = resolve(made.result, GuestOptions(kernel=str(made.bin)))
    assert machine(spec).kernel_override
    assert (spec.kernel.image, spec.kernel.vmlinux) == (image, made.bin / "vmlinux")
    assert [note for note in spec.notes if "scripts" not in note] == []


def test_symbols_that_are_given_are_taken_and_nix_is_not_asked(made: Made, vmlinux: Path) -> None:
    spec = resolve(made.result, GuestOptions(vmlinux=str(vmlinux)))
    assert not machine(spec).kernel_override
    assert spec.kernel.vmlinux == vmlinux


def test_a_script_that_takes_no_other_kernel_is_noted(made: Made, vmlinux: Path) -> None:
    script = made.script.resolve()
    script.write_text(script.read_text().replace("NIXPKGS_QEMU_KERNEL_", "X"))
    image = kernelfiles.image(made.bin / "bzImage", vmlinux)
    notes = resolve(made.result, GuestOptions(kernel=str(image), vmlinux=str(vmlinux))).notes
    assert f"kernel= may have no effect: {made.script} has no NIXPKGS_QEMU_KERNEL_…" in notes


def test_a_disk_goes_into_a_directory_that_is_there(made: Made) -> None:
    with pytest.raises(UsageError, match=r"disk=.*: there is no directory /nowhere"):
        resolve(made.result, GuestOptions(disk="/nowhere/disk.qcow2"))


@pytest.mark.parametrize(
    ("deriver", "realised", "why"),
    [
        ("echo unknown-deriver", "", "nix does not know which derivation made"),
        ("echo 'error: not valid' >&2; exit 1", "", "nix has no `dev` output for .*: not valid"),
        (
            "echo /s/x.drv",
            "echo 'error: no outputs' >&2; exit 1",
            "nix has no `dev` output for .*: no outputs",
        ),
        (
            "echo /s/x.drv",
            "echo \"error: derivation '/s/x.drv' does not have wanted outputs 'dev'\" >&2; exit 1",
            r"linux-6\.1\.0 has no `dev` output, which nixpkgs makes only for kernels with modules; ",
        ),
    ],
)
def test_symbols_that_nix_does_not_have_are_a_note(made: Made, deriver: str, realised: str, why: str) -> None:
    made.nix_says(deriver, realised)
    spec = resolve(made.result)
    assert spec.kernel.vmlinux is None
    assert len(spec.notes) == 1
    assert re.search(why, spec.notes[0])


@pytest.mark.parametrize(("section", "told"), [(".symtab", True), (".debug_info", False)])
def test_modules_without_debug_information_are_noted(made: Made, section: str, *, told: bool) -> None:
    """nixpkgs strips those of every kernel; the names of an ELF file's sections end in a zero byte."""
    modules = made.toplevel / "kernel-modules/lib/modules/6.1.0/kernel"
    modules.mkdir(parents=True)
    (modules / "brd.ko.xz").write_bytes(lzma.compress(f"\0{section}\0".encode()))
    made.nix_says("echo /s/x.drv", f"echo {made.dev}")
    notes = [note for note in resolve(made.result).notes if "the modules have no debug information" in note]
    assert bool(notes) is told
    assert all("stripModules = false" in note for note in notes)


def test_without_nix_the_guest_starts_without_symbols(made: Made) -> None:
    spec = resolve(made.result)
    assert spec.kernel.vmlinux is None
    assert spec.notes[0].startswith("no symbols: nix-store is not on PATH")


def test_a_kernel_outside_of_a_store_has_no_derivation(made: Made, vmlinux: Path) -> None:
    image = kernelfiles.image(made.bin / "bzImage", vmlinux)
    (made.toplevel / "kernel").unlink()
    (made.toplevel / "kernel").symlink_to(image)
    assert resolve(made.result).notes == (
        f'no symbols: {image} is not in a Nix store; give them: vmlinux="FILE"',
    )


def test_symbols_of_another_build_are_refused(made: Made) -> None:
    ours, theirs = bytes.fromhex(kernelfiles.ID), bytes.fromhex(kernelfiles.OTHER_ID)
    symbols = made.dev / "vmlinux"
    symbols.write_bytes(symbols.read_bytes().replace(ours, theirs))
    made.nix_says("echo /s/x.drv", f"echo {made.dev}")
    with pytest.raises(MismatchError, match="are of different builds"):
        resolve(made.result)


def test_the_deadline_holds_for_nix(made: Made) -> None:
    made.nix_says(f"exec {SLEEP} 600", "")
    with pytest.raises(DeadlineError):
        resolve(made.result, seconds=0.2)


def test_a_runner_without_parameters_is_noted(made: Made) -> None:
    script = made.script.resolve()
    script.write_text("#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 -bios x\n")
    script.chmod(0o755)
    assert [note for note in resolve(made.result).notes if "symbols" not in note] == [
        f"kernel parameters may have no effect: {made.script} has no QEMU_KERNEL_PARAMS"
    ]


def test_ports_are_forwarded_to_the_network_that_the_script_makes(made: Made) -> None:
    with pytest.raises(UsageError, match="it has no QEMU_NET_OPTS") as caught:
        resolve(made.result, GuestOptions(source="result", forward=("8080:80",)))
    assert "virtualisation.forwardPorts" in caught.value.hint
    with pytest.raises(UsageError, match=r'net="segment=lab" is for guests whose QEMU command line'):
        resolve(made.result, GuestOptions(source="result", net=("segment=lab",)))
    script = made.script.resolve()
    script.write_text(f'{script.read_text()}    -netdev user,id=user.0,"$QEMU_NET_OPTS"\n')
    spec = resolve(made.result, GuestOptions(source="result", forward=("8080:80",)))
    assert [each.rule for nic in spec.nics for each in nic.forwards] == ["tcp:127.0.0.1:8080-:80"]


@pytest.mark.parametrize(
    "option",
    [
        {"firmware": "uefi"},
        {"initrd": "/i"},
        {"root": "host"},
        {"root_dev": 0},
        {"root_image": "never"},
        {"init": "none"},
        {"login": True},
        {"keep": True},
    ],
)
def test_what_the_script_boots_is_its_own(made: Made, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is for guests whose QEMU command line vmdebug makes"):
        resolve(made.result, GuestOptions(source="result", **option))


def test_a_directory_holds_one_runner(made: Made) -> None:
    empty = made.bin
    with pytest.raises(UsageError, match="should have one script bin/run-NAME-vm; found: none"):
        resolve(empty)
    (made.script.parent / "run-b-vm").touch()
    with pytest.raises(UsageError, match="found: run-b-vm, run-my-vm-vm"):
        resolve(made.result)


def test_a_script_that_is_not_there_or_no_program(made: Made) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        resolve(made.bin / "run-x-vm")
    made.script.resolve().chmod(0o644)
    with pytest.raises(UsageError, match="is not executable"):
        resolve(made.result)


def test_a_script_without_its_system_cannot_be_started(made: Made) -> None:
    lone = made.bin / "run-x-vm"
    lone.write_text("#!/bin/sh\n")
    lone.chmod(0o755)
    with pytest.raises(UsageError, match=r"the kernel that .* boots is unknown"):
        resolve(lone)


def test_a_script_without_a_name_cannot_be_started(made: Made) -> None:
    named = made.script.with_name("start")
    shutil.copy(made.script, named)
    text = named.read_text().replace("-name my-vm", "")
    named.write_text(text)
    with pytest.raises(UsageError, match="the system's name is unknown: start is not run-NAME-vm"):
        resolve(named)


class TestModules:
    @pytest.fixture
    def linux(self, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A build tree with a module, whose kernel replaces the runner's."""
        monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
        (made.toplevel / "initrd").write_bytes(b"their initrd")
        top = kernelfiles.tree(tmp_path / "linux")
        kernelfiles.module(top / "lib/first.ko")
        (top / "modules.order").write_text("lib/first.ko\n")
        names = [need.option for need in (*requirements.RUNNER, *requirements.SYSTEMD)]
        config = (top / ".config").read_text() + "".join(f"CONFIG_{name}=y\n" for name in names)
        (top / ".config").write_text(config + "CONFIG_MODULES=y\nCONFIG_EROFS_FS=y\n")
        return top

    def test_those_of_another_kernel_are_before_the_initrd_and_on_a_disk(
        self, made: Made, linux: Path, tmp_path: Path
    ) -> None:
        mine = kernelfiles.module(tmp_path / "my-own.ko")
        options = GuestOptions(source="result", kernel=str(linux), module=(str(mine),))
        spec = resolve(made.result, options)
        initrd = machine(spec).initrd
        assert initrd is not None
        content = initrd.read_bytes()
        here = f"lib/modules/{kernelfiles.RELEASE}"
        for name in ("kernel/lib/first.ko", "vmdebug/my_own.ko", "modules.dep"):
            assert f"{here}/{name}\0".encode() in content
        assert content.startswith(b"070701")
        assert content.endswith(b"their initrd")
        assert machine(spec).modules is not None
        place = (made.toplevel / "kernel-modules/lib/modules").resolve()
        assert spec.parameters[:2] == (
            "modules_load=my_own",
            f"systemd.mount-extra=/dev/disk/by-id/virtio-vmdebug-modules:{place}:erofs:ro,nofail",
        )
        assert spec.kernel.module_files() == (mine, linux)
        assert any(note.startswith("modules: 2 of") for note in spec.notes)

    def test_one_that_cannot_mount_the_disk_has_them_in_the_initrd(self, made: Made, linux: Path) -> None:
        text = (linux / ".config").read_text().replace("CONFIG_EROFS_FS=y\n", "")
        (linux / ".config").write_text(text)
        spec = resolve(made.result, GuestOptions(source="result", kernel=str(linux)))
        assert machine(spec).initrd is not None
        assert machine(spec).modules is None
        assert not any("mount-extra" in word for word in spec.parameters)
        assert any("an image needs EROFS_FS" in note for note in spec.notes)

    def test_the_runner_s_own_kernel_keeps_its_initrd(self, made: Made, linux: Path) -> None:
        spec = resolve(made.result)
        assert (machine(spec).initrd, machine(spec).modules) == (None, None)
        none = GuestOptions(source="result", kernel=str(linux), modules="none")
        assert machine(resolve(made.result, none)).initrd is None
