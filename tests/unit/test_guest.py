import re
from pathlib import Path

import msgspec
import pytest

from vmdebug import guest, spelling
from vmdebug.arch import by_name
from vmdebug.errors import UsageError

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
        guest.decode(b'{"memory": "much"}', guest.GuestOptions)


def test_ours_come_before_the_users_parameters() -> None:
    ours = guest.parameters(by_name("x86_64"), kaslr=False, append="quiet nowatchdog=0")
    assert ours[:2] == ("console=ttyS0,115200", "nokaslr")
    assert set(guest.DEBUGGER_PARAMETERS) < set(ours)
    assert ours[-2:] == ("quiet", "nowatchdog=0")


@pytest.mark.parametrize(
    ("append", "loud"),
    [("", True), ("ro", True), ("quiet", False), ("loglevel=4", False), (guest.IGNORE_LOGLEVEL, False)],
)
def test_the_console_shows_every_message_unless_the_user_chooses(append: str, loud: bool) -> None:
    ours = guest.parameters(by_name("x86_64"), kaslr=False, append=append)
    assert (guest.IGNORE_LOGLEVEL in ours[: len(ours) - len(append.split())]) == loud


def test_kaslr_stays_on_when_asked_for() -> None:
    assert "nokaslr" not in guest.parameters(by_name("x86_64"), kaslr=True, append="")


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


class TestOptions:
    def test_start_takes_what_a_table_takes(self) -> None:
        assert {*guest.StartOptions.__annotations__} == {*guest.GuestOptions.__struct_fields__} - {
            "source",
            "table",
            "from_table",
        }

    def test_each_of_them_is_of_a_type_that_the_struct_takes(self) -> None:
        values: dict[str, object] = {
            "name": "n",
            "kernel": Path("/k"),
            "vmlinux": Path("/v"),
            "gdb_scripts": Path("/g"),
            "append": "quiet",
            "accel": "tcg",
            "memory": "2G",
            "cpus": 2,
            "disk": Path("/d"),
            "initrd": Path("/i"),
            "root": Path("/r"),
            "root_dev": 2,
            "root_image": "never",
            "init": "/sbin/init",
            "firmware": "uefi",
            "tcp": 0,
            "trace_ready": "no",
            "qemu_args": ["-device", "edu"],
            "nix_args": ["--impure"],
        }
        flags = {"halt": True, "kaslr": True, "force": True, "debuginfod": True, "keep": True}
        assert {*values, *flags} == {*guest.StartOptions.__annotations__}
        assert guest.changed(guest.GuestOptions(), {**values, **flags}) == guest.GuestOptions(
            name="n",
            halt=True,
            kernel="/k",
            vmlinux="/v",
            gdb_scripts="/g",
            debuginfod=True,
            append="quiet",
            kaslr=True,
            accel="tcg",
            memory=2048,
            cpus=2,
            disk="/d",
            initrd="/i",
            root="/r",
            root_dev=2,
            root_image="never",
            init="/sbin/init",
            keep=True,
            firmware="uefi",
            tcp=0,
            trace_ready="no",
            qemu_args=("-device", "edu"),
            nix_args=("--impure",),
            force=True,
        )

    @pytest.mark.parametrize(
        ("said", "says", "hint"),
        [
            ({"kernal": "/k"}, "there is no option kernal=", "did you mean kernel=?"),
            ({"xyzzy": 1}, "there is no option xyzzy=", "the options are: name=, halt=, kernel="),
            ({"cpus": 0}, "cpus=: Expected `int` >= 1", "help(vmdebug.GuestOptions)"),
            ({"kernel": 1}, "kernel=: Expected `str", "help(vmdebug.GuestOptions)"),
            ({"memory": "much"}, "memory=: 'much' is not an amount of memory", "512M"),
            ({"accel": "hvf"}, "accel=: Invalid enum value 'hvf'", "it is one of auto, kvm, tcg"),
            ({"qemu_args": "-device edu"}, "qemu_args=: Expected `list`", "help(vmdebug.GuestOptions)"),
        ],
    )
    def test_what_cannot_be_right_is_named(self, said: dict[str, object], says: str, hint: str) -> None:
        with pytest.raises(UsageError, match=re.escape(says)) as raised:
            guest.changed(guest.GuestOptions(), said)
        assert hint in raised.value.hint

    def test_a_tables_value_is_spelled_as_the_table_does_until_somebody_overrides_it(self) -> None:
        base = guest.GuestOptions(kernel="/k", disk="/d", table="base", from_table=("kernel", "disk"))
        options = guest.changed(base, {"kernel": "/other"})
        with spelling.spelled(options.speller()):
            assert spelling.option("disk", "/d") == '[guest.base] disk = "/d"'
            assert spelling.option("kernel", "/other") == 'kernel="/other"'
            assert spelling.option("disk") == "disk="
