import re
from pathlib import Path

import pytest

from vmdebug import spelling
from vmdebug.errors import UsageError
from vmdebug.guest_options import GuestOptions, StartOptions, changed, memory_mib


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512", 512), ("512M", 512), ("2G", 2048), ("1.5g", 1536), ("2 GiB", 2048), ("1T", 1 << 20)],
)
def test_memory_is_written_as_qemu_takes_it(text: str, mib: int) -> None:
    assert memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "512K", "0.3M", "1e3", "nan", "2G2", "9" * 400])
def test_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="amount of memory"):
        memory_mib(text)


def test_start_takes_what_a_table_takes() -> None:
    assert {*StartOptions.__annotations__} == {*GuestOptions.__struct_fields__} - {
        "source",
        "table",
        "from_table",
    }


def test_each_of_them_is_of_a_type_that_the_struct_takes() -> None:
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
        "modules": Path("/m"),
        "module": [Path("/a.ko"), "/b.ko"],
        "root": Path("/r"),
        "root_dev": 2,
        "root_image": "never",
        "init": "/sbin/init",
        "share": [Path("/s"), "/t:/mnt:rw"],
        "net": "user",
        "forward": [8080, ":22"],
        "firmware": "uefi",
        "tcp": 0,
        "trace_ready": "no",
        "record": Path("/r.vmdrec"),
        "qemu_args": ["-device", "edu"],
        "nix_args": ["--impure"],
    }
    flags = {
        "load_modules": False,
        "halt": True,
        "kaslr": True,
        "force": True,
        "debuginfod": True,
        "keep": True,
        "login": True,
    }
    assert {*values, *flags} == {*StartOptions.__annotations__}
    assert changed(GuestOptions(), {**values, **flags}) == GuestOptions(
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
        share=("/s", "/t:/mnt:rw"),
        login=True,
        initrd="/i",
        modules="/m",
        module=("/a.ko", "/b.ko"),
        load_modules=False,
        root="/r",
        root_dev=2,
        root_image="never",
        init="/sbin/init",
        keep=True,
        net=("user",),
        forward=("8080", ":22"),
        firmware="uefi",
        tcp=0,
        trace_ready="no",
        record="/r.vmdrec",
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
def test_what_cannot_be_right_is_named(said: dict[str, object], says: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as raised:
        changed(GuestOptions(), said)
    assert hint in raised.value.hint


def test_a_tables_value_is_spelled_as_the_table_does_until_somebody_overrides_it() -> None:
    base = GuestOptions(kernel="/k", disk="/d", table="base", from_table=("kernel", "disk"))
    options = changed(base, {"kernel": "/other"})
    with spelling.spelled(options.speller()):
        assert spelling.option("disk", "/d") == '[guest.base] disk = "/d"'
        assert spelling.option("kernel", "/other") == 'kernel="/other"'
        assert spelling.option("disk") == "disk="


def test_one_module_needs_no_list() -> None:
    assert changed(GuestOptions(), {"module": Path("/a.ko")}).module == ("/a.ko",)
    assert changed(GuestOptions(), {"module": "/a.ko"}).module == ("/a.ko",)
