from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vmdebug.arch import by_name
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine, RunnerMachine
from vmdebug.vm.accel import Choice
from vmdebug.vm.clones import build, template
from vmdebug.vm.features import Features
from vmdebug.vm.planning import Resources

X86_64 = by_name("x86_64")
SPEC = LaunchSpec(
    name="vm",
    guest="a test",
    machine=OwnMachine(),
    kernel=Kernel(arch="x86_64", image=Path("/bzImage"), origin="a test"),
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"qemu_args": ("-device", "virtio-balloon-pci")}, ""),
        ({"machine": OwnMachine(disk=Path("/d"))}, "the disk /d can have only one writer"),
        (
            {"machine": OwnMachine(disk=Path("/d"), throwaway=True)},
            "its changes to the disk /d are not copied",
        ),
        (
            {"machine": RunnerMachine(script=Path("/r"), system_name="n")},
            "the guest of a NixOS VM runner has a disk",
        ),
        ({"qemu_args": ("-drive", "file=x")}, "the QEMU argument -drive attaches a disk"),
        ({"qemu_args": ("--drive", "file=x")}, "the QEMU argument --drive attaches a disk"),
        ({"qemu_args": ("-usb", "x.img")}, "the QEMU argument x.img attaches a disk"),
        ({"qemu_args": ("-append", "-drive")}, ""),
        ({"qemu_args": ("-m", "4G")}, "the QEMU argument -m defines its memory"),
        ({"qemu_args": ("-M", "q35,memory-backend=m")}, "the QEMU argument -M defines its memory"),
        ({"qemu_args": ("-machine", "q35")}, ""),
        (
            {"qemu_args": ("-readconfig", "f")},
            "the QEMU argument -readconfig names a file that vmdebug does not read",
        ),
    ],
)
def test_what_keeps_a_guest_from_being_saved_is_named(changes: dict[str, object], reason: str) -> None:
    found = build.obstacle(msgspec.structs.replace(SPEC, **changes))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


@pytest.fixture
def resources(tmp_path: Path) -> Resources:
    qemu = tmp_path / "qemu"
    qemu.write_text("a QEMU")
    return Resources(qemu=qemu, arch=X86_64, choice=Choice("tcg", "asked for"), features=Features())


def test_a_template_is_told_by_all_that_makes_the_guest(resources: Resources, tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(b"one kernel")
    spec = msgspec.structs.replace(SPEC, kernel=Kernel(arch="x86_64", image=image, origin="a test"))
    key = template.key(spec, resources, None)
    for same in ({"name": "other"}, {"halt": True}, {"notes": ("a note",)}, {"guest": "by another name"}):
        assert template.key(msgspec.structs.replace(spec, **same), resources, None) == key
    for other in ({"memory": 64}, {"parameters": ("quiet",)}, {"cpus": 2}, {"qemu_args": ("-s",)}):
        assert template.key(msgspec.structs.replace(spec, **other), resources, None) != key
    assert template.key(spec, resources, tmp_path) != key
    image.write_bytes(b"another one")
    assert template.key(spec, resources, None) != key
    image.write_bytes(b"one kernel")
    assert template.key(spec, resources, None) == key
    resources.qemu.write_text("a newer QEMU")
    assert template.key(spec, resources, None) != key
