from pathlib import Path

import msgspec
import pytest

from vmdebug import guest

KERNEL = guest.Kernel(
    image=Path("/src/linux/arch/x86/boot/bzImage"), origin="the tree /src/linux", build_id="ab"
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
        guest.decode(b'{"memory": "much"}', guest.GuestOptions)


def test_ours_come_before_the_users_parameters() -> None:
    ours = guest.parameters(console="ttyS0", kaslr=False, append="quiet nowatchdog=0")
    assert ours[:2] == ("console=ttyS0", "nokaslr")
    assert set(guest.SANE_WHEN_STOPPED) < set(ours)
    assert ours[-2:] == ("quiet", "nowatchdog=0")


def test_kaslr_stays_on_when_asked_for() -> None:
    assert "nokaslr" not in guest.parameters(console="ttyS0", kaslr=True, append="")
