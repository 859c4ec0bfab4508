from pathlib import Path

import msgspec
import pytest

from vmdebug import guest
from vmdebug.errors import UsageError

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
    assert ours[:2] == ("console=ttyS0,115200", "nokaslr")
    assert set(guest.SANE_WHEN_STOPPED) < set(ours)
    assert ours[-2:] == ("quiet", "nowatchdog=0")


def test_kaslr_stays_on_when_asked_for() -> None:
    assert "nokaslr" not in guest.parameters(console="ttyS0", kaslr=True, append="")


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512", 512), ("512M", 512), ("2G", 2048), ("1.5g", 1536), ("2 GiB", 2048), ("1T", 1 << 20)],
)
def test_memory_is_written_as_qemu_takes_it(text: str, mib: int) -> None:
    assert guest.memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "512K", "0.3M", "1e3", "nan", "2G2", "9" * 400])
def test_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="amount of memory"):
        guest.memory_mib(text)


@pytest.mark.parametrize("wrong", ['"memory": 0', '"cpus": 0', '"tcp": 65536', '"tcp": -1'])
def test_an_impossible_number_is_refused(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\."):
        guest.decode(f"{{{wrong}}}".encode(), guest.GuestOptions)
