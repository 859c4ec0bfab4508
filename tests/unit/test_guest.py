from pathlib import Path

import msgspec
import pytest

from vmdebug import guest
from vmdebug.guest_options import GuestOptions

KERNEL = guest.Kernel(
    arch="x86_64", image=Path("/src/linux/arch/x86/boot/bzImage"), origin="the tree /src/linux", build_id="ab"
)


@pytest.mark.parametrize(
    "machine",
    [
        guest.OwnMachine(initrd=Path("/cache/initramfs")),
        guest.RunnerMachine(
            script=Path("/nix/store/x/bin/run-my-vm-vm"), system_name="my-vm", kernel_override=True
        ),
    ],
)
def test_a_launch_spec_survives_json(machine: guest.OwnMachine | guest.RunnerMachine) -> None:
    spec = guest.LaunchSpec(
        name="g",
        guest=".#g",
        machine=machine,
        kernel=KERNEL,
        parameters=("console=ttyS0", "a b"),
        qemu_args=("-device", "edu"),
    )
    assert guest.decode(guest.encode(spec), guest.LaunchSpec) == spec


def test_a_wrong_type_is_named_by_its_place() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"`int.*`.*\$\.memory"):
        guest.decode(b'{"memory": "much"}', GuestOptions)


@pytest.mark.parametrize("wrong", ['"memory": 0', '"cpus": 0', '"tcp": 65536', '"tcp": -1'])
def test_an_impossible_number_is_refused(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\."):
        guest.decode(f"{{{wrong}}}".encode(), GuestOptions)
