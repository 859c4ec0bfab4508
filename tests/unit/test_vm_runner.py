from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug import network
from vmdebug.arch import by_name
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel, LaunchSpec, RunnerMachine
from vmdebug.vm import argv, disks, runner
from vmdebug.vm.features import Features
from vmdebug.vm.rundir import RunDir

ALL = Features(version="9.1", pvpanic="pvpanic-pci", vmcoreinfo=True, rng=True, actions=True)
RUNDIR = RunDir(Path("/run/vm"))
SCRATCH = Path("/var/tmp/scratch")
MACHINE = RunnerMachine(script=Path("/nix/store/x/bin/run-my-vm-vm"), system_name="my-vm")

# The end of a script of nixos/modules/virtualisation/qemu-vm.nix.
SCRIPT = """\
# Start QEMU.
exec /nix/store/abc-qemu-host-cpu-only-8.2.6/bin/qemu-kvm -cpu max \\
    -name my-vm \\
    -m 1024 \\
    -smp 1 \\
    -device virtio-rng-pci \\
    $QEMU_OPTS \\
    "$@"
"""


def spec(**changes: object) -> LaunchSpec:
    values: dict[str, object] = {
        "name": "vm",
        "guest": ".#my-vm",
        "machine": MACHINE,
        "kernel": Kernel(arch="x86_64", image=Path("/src/linux/bzImage"), origin="a test"),
        "parameters": ("console=ttyS0", "nokaslr"),
    }
    return LaunchSpec(**{**values, **changes})  # type: ignore[arg-type]


def test_an_initrd_and_modules_of_another_kernel_come_after_the_scripts_own() -> None:
    machine = RunnerMachine(
        script=MACHINE.script, system_name="my-vm", initrd=Path("/c/a.initrd"), modules=Path("/c/m.erofs")
    )
    words = list(
        runner.command(
            spec(machine=machine),
            machine,
            given=runner.options(SCRIPT, inherited={}),
            accel="tcg",
            arch=by_name("x86_64"),
            rundir=RUNDIR,
            features=ALL,
        )
    )
    assert words[words.index("-initrd") + 1] == "/c/a.initrd"
    assert words[words.index("-initrd") + 2 :][:6] == list(disks.modules(Path("/c/m.erofs")))


def command(
    of: LaunchSpec, script: str = SCRIPT, accel: argv.RealAccel = "tcg", qemu_opts: str = ""
) -> list[str]:
    given = runner.options(script, inherited={"QEMU_OPTS": qemu_opts})
    words = runner.command(
        of, MACHINE, given=given, accel=accel, arch=by_name("x86_64"), rundir=RUNDIR, features=ALL
    )
    return list(words)


def test_the_whole_command() -> None:
    assert command(spec(halt=True, qemu_args=("-device", "edu"))) == [
        "/nix/store/x/bin/run-my-vm-vm",
        *("-machine", "accel=tcg"),
        *argv.no_user_interface(),
        *argv.console(RUNDIR),
        *argv.monitors(RUNDIR),
        *argv.gdbstub(RUNDIR, None),
        *("-device", "pvpanic-pci"),
        *("-device", "vmcoreinfo"),
        "-no-reboot",
        *("-action", "panic=pause"),
        *("-pidfile", "/run/vm/qemu.pid"),
        "-S",
        *("-device", "edu"),
    ]


def test_nothing_that_is_the_runners_own_is_given_twice() -> None:
    words = command(spec())
    assert not {"-m", "-smp", "-name", "-kernel", "-append", "-nodefaults", "-accel"} & set(words)
    assert "virtio-rng-pci" not in words


def test_memory_and_cpus_are_given_when_they_are_asked_for() -> None:
    words = command(spec(memory=2048, cpus=3))
    assert words[words.index("-m") + 1] == "2048"
    assert words[words.index("-smp") + 1] == "3"


def test_a_script_with_an_accel_of_its_own_keeps_it() -> None:
    # QEMU: "The -accel and "-machine accel=" options are incompatible".
    assert "-machine" not in command(spec(), SCRIPT.replace("-smp 1", "-accel kvm"))
    assert "-machine" not in command(spec(), SCRIPT.replace("-smp 1", "-enable-kvm"))


def test_the_hosts_cpu_is_replaced_under_tcg() -> None:
    script = SCRIPT.replace("-cpu max", "-cpu host")
    assert command(spec(), script)[3:5] == ["-cpu", "max"]
    assert "-cpu" not in command(spec(), script, "kvm")


def test_devices_of_the_script_are_not_added_again() -> None:
    words = command(spec(), SCRIPT.replace("-smp 1", "-device vmcoreinfo"))
    assert "vmcoreinfo" not in words


def test_what_the_script_says_elsewhere_is_no_argument() -> None:
    words = command(spec(), "# -accel kvm\necho -device vmcoreinfo -cpu host\n" + SCRIPT + "echo -accel\n")
    assert words[1:3] == ["-machine", "accel=tcg"]
    assert "-cpu" not in words
    assert "vmcoreinfo" in words


def test_the_users_qemu_opts_are_read() -> None:
    assert "-machine" not in command(spec(), qemu_opts="-vnc :0 -accel kvm")
    assert command(spec(), qemu_opts="-device vmcoreinfo").count("vmcoreinfo") == 0


def test_a_scripts_quotations_are_the_shells() -> None:
    script = SCRIPT.replace(
        "-smp 1", "-append \"$(cat /x/kernel-params) '-accel'\n $QEMU_KERNEL_PARAMS\" -cpu 'host'"
    )
    given = runner.options(script + "|| exit 1; -accel kvm", inherited={})
    assert [option.name for option in given.every] == ["cpu", "name", "m", "append", "cpu", "device"]
    assert given.every[3].argument == "$(cat /x/kernel-params) '-accel'\n $QEMU_KERNEL_PARAMS"
    assert command(spec(), script)[3:5] == ["-cpu", "max"]


def test_a_quotation_that_never_ends_is_read_as_far_as_it_goes() -> None:
    given = runner.options("exec qemu-kvm -accel 'kvm -cpu host\n", inherited={})
    assert given.named("accel")
    assert runner.options("exec something-else", inherited={}).every == ()


def test_the_whole_environment() -> None:
    machine = RunnerMachine(script=MACHINE.script, system_name="my-vm", kernel_override=True)
    assert runner.environment(spec(), machine, scratch=SCRATCH, inherited={}) == {
        "NIX_DISK_IMAGE": "/var/tmp/scratch/disk.qcow2",
        "TMPDIR": "/var/tmp/scratch",
        "USE_TMPDIR": "1",
        "QEMU_KERNEL_PARAMS": "console=ttyS0 nokaslr",
        "NIXPKGS_QEMU_KERNEL_my_vm": "/src/linux/bzImage",
    }


def test_a_disk_to_keep_is_the_users() -> None:
    machine = RunnerMachine(script=MACHINE.script, system_name="v", disk=Path("/home/me/d.qcow2"))
    env = runner.environment(spec(), machine, scratch=SCRATCH, inherited={})
    assert env["NIX_DISK_IMAGE"] == "/home/me/d.qcow2"
    assert not any(name.startswith("NIXPKGS_QEMU_KERNEL_") for name in env)


def test_the_users_own_variables_are_left_alone() -> None:
    inherited = {"QEMU_OPTS": "-vnc :0", "QEMU_KERNEL_PARAMS": "loglevel=8 nokaslr=0"}
    env = runner.environment(spec(), MACHINE, scratch=SCRATCH, inherited=inherited)
    assert "QEMU_OPTS" not in env
    assert env["QEMU_KERNEL_PARAMS"] == "console=ttyS0 nokaslr loglevel=8 nokaslr=0"


def test_ports_are_forwarded_before_the_users_own_options() -> None:
    forwarding = spec(nics=network.parse((), ["8080:80", "0.0.0.0:53:53/udp"]))
    rules = "hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:0.0.0.0:53-:53"
    env = runner.environment(forwarding, MACHINE, scratch=SCRATCH, inherited={})
    assert env["QEMU_NET_OPTS"] == rules
    inherited = {"QEMU_NET_OPTS": "hostfwd=tcp::2222-:22"}
    env = runner.environment(forwarding, MACHINE, scratch=SCRATCH, inherited=inherited)
    assert env["QEMU_NET_OPTS"] == f"{rules},hostfwd=tcp::2222-:22"
    assert "QEMU_NET_OPTS" not in runner.environment(spec(), MACHINE, scratch=SCRATCH, inherited=inherited)


@pytest.mark.parametrize(
    ("name", "variable"),
    [("my-vm", "my_vm"), ("nixos", "nixos"), ("a.b_C9", "a_b_C9"), ("é", "_")],
)
def test_the_kernels_variable_has_the_name_as_nixpkgs_writes_it(name: str, variable: str) -> None:
    assert runner.kernel_variable(name) == f"NIXPKGS_QEMU_KERNEL_{variable}"


@pytest.mark.parametrize("image", ["/a b/bzImage", "/a*/bzImage", "/a$b/bzImage", "/a\tb"])
def test_a_kernel_path_that_the_script_would_split_is_refused(image: str) -> None:
    machine = RunnerMachine(script=MACHINE.script, system_name="v", kernel_override=True)
    changed = spec(kernel=Kernel(arch="x86_64", image=Path(image), origin="a test"))
    with pytest.raises(UsageError, match="cannot be passed to a runner script"):
        runner.environment(changed, machine, scratch=SCRATCH, inherited={})


@pytest.mark.parametrize(
    ("script", "qemu"),
    [
        (SCRIPT, "/nix/store/abc-qemu-host-cpu-only-8.2.6/bin/qemu-kvm"),
        ("exec '/usr/bin/qemu-system-x86_64' -m 1\n", "/usr/bin/qemu-system-x86_64"),
        ("/a/bin/qemu-img create\nexec /a/bin/qemu-system-aarch64 -m 1", "/a/bin/qemu-system-aarch64"),
    ],
)
def test_the_scripts_qemu_is_found(script: str, qemu: str) -> None:
    assert runner.qemu(script) == Path(qemu)


def test_a_script_may_name_no_qemu() -> None:
    assert runner.qemu('#!/bin/sh\nexec qemu-system-x86_64 "$@"\n') is None
