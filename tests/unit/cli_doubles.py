"""A VM for the tests of the command line: its values are real, but it was never started."""

from __future__ import annotations

from pathlib import Path

from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.process import ProcessRef
from vmdebug.vm.guest_status import Status
from vmdebug.vm.machine import Vm
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import State

KERNEL = Kernel(
    arch="x86_64",
    image=Path("/src/linux/arch/x86/boot/bzImage"),
    origin="the tree /src/linux",
    build_id="ab12",
    release="6.1.0",
    vmlinux=Path("/src/linux/vmlinux"),
)


def spec(name: str = "linux", *, halt: bool = False, kernel: Kernel = KERNEL) -> LaunchSpec:
    return LaunchSpec(
        name=name,
        guest="/src/linux",
        machine=OwnMachine(),
        kernel=kernel,
        parameters=("console=ttyS0", "nokaslr"),
        halt=halt,
    )


def machine(
    name: str = "linux",
    status: Status = "running",
    *,
    directory: Path = Path("/run/vmdebug"),
    kernel: Kernel = KERNEL,
) -> Vm:
    path = directory / name
    state = State(
        spec=spec(name, halt=status == "halted", kernel=kernel),
        qemu=ProcessRef(pid=4711, started=1),
        leader=ProcessRef(pid=4711, started=1),
        accel="tcg",
        reason="asked for",
        argv=("qemu-system-x86_64",),
        env={},
        owner=None,
        gdb=str(path / "gdb.sock"),
        started_at=0.0,
    )
    return Vm(RunDir(path), state, ended=status)
