import re
from pathlib import Path

import pytest

from tests.unit import kernelfiles
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.guest import Root, Share
from vmdebug.process import Completed
from vmdebug.sources import cpio, initramfs


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.fixture
def busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A static program that is found as busybox, and lists three programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program = kernelfiles.vmlinux(tmp_path / "busybox")

    def run(argv: list[object], **_: object) -> Completed:
        assert list(map(str, argv)) == [str(program), "--list-full"]
        return Completed((), 0, "bin/busybox\nbin/sh\nsbin/reboot\n", "")

    monkeypatch.setattr(process, "find", lambda *_, **__: program)
    monkeypatch.setattr(process, "run", run)
    return program


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """An archive with modules."""
    archive = tmp_path / "1.cpio"
    archive.write_bytes(cpio.archive([cpio.file("lib/modules/6.1.0/kernel/lib/a.ko", b"module")]))
    return archive


def names(archive: Path) -> set[str]:
    # A newc name follows its header of 110 bytes.
    data = archive.read_bytes()
    return {
        data[match.start() + 110 :].partition(b"\0")[0].decode()
        for match in re.finditer(rb"070701[0-9a-f]{104}", data)
    }


def test_what_is_in_it(busybox: Path) -> None:
    assert names(initramfs.build(deadline=soon())) == {
        *("bin", "bin/busybox", "bin/sh", "init", "TRAILER!!!"),
        *("sbin", "sbin/reboot", "etc", "etc/console", "etc/dhcp", "etc/group", "etc/load-modules"),
        *("etc/net", "etc/passwd", "etc/shell"),
        *("dev", "dev/console", "dev/kmsg", "dev/null", "dev/random", "dev/tty", "dev/ttyS0"),
        *("dev/urandom", "dev/zero", "mnt", "proc", "root", "run", "sys", "tmp"),
    }


def test_the_same_bytes_every_time(busybox: Path) -> None:
    once = initramfs.build(deadline=soon())
    data = once.read_bytes()
    once.unlink()
    assert initramfs.build(deadline=soon()) == once
    assert once.read_bytes() == data


def test_it_is_made_once(busybox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = initramfs.build(deadline=soon())
    monkeypatch.setattr(process, "run", None)
    assert initramfs.build(deadline=soon()) == once


def test_another_busybox_makes_another(busybox: Path) -> None:
    once = initramfs.build(deadline=soon())
    busybox.write_bytes(busybox.read_bytes() + b"newer")
    assert initramfs.build(deadline=soon()) != once


def test_modules_are_where_modprobe_looks(busybox: Path, modules: Path) -> None:
    plain = initramfs.build(deadline=soon())
    whole = initramfs.build(modules=modules, deadline=soon())
    assert whole.read_bytes() == plain.read_bytes() + modules.read_bytes()
    assert names(whole) - names(plain) == {
        *("lib", "lib/modules", "lib/modules/6.1.0"),
        *("lib/modules/6.1.0/kernel", "lib/modules/6.1.0/kernel/lib", "lib/modules/6.1.0/kernel/lib/a.ko"),
    }


def test_a_root_file_system_is_mounted_by_a_script(busybox: Path) -> None:
    root = Root(words="disk.img", location=Path("/disk.img"), file_system="ext4", partition=2, init="it's")
    whole = initramfs.build(root=root, deadline=soon())
    assert names(whole) - names(initramfs.build(deadline=soon())) == {
        "etc/environment",
        "etc/root",
        "etc/serve",
        "etc/switch",
    }
    said = b"root_type=ext4\nroot_partition=2\nroot_keep=''\nroot_init='it'\"'\"'s'\n"
    assert said in whole.read_bytes()


def test_a_container_image_s_variables_are_quoted_for_a_shell(busybox: Path) -> None:
    root = Root(
        words="i",
        location=Path("/i"),
        file_system="erofs",
        environment=("A=it's $x", "no-name=1", "PATH=/a:/b"),
        directory="/app",
    )
    said = b"export A='it'\"'\"'s $x'\nexport PATH=/a:/b\ndirectory=/app\n"
    assert said in initramfs.build(root=root, deadline=soon()).read_bytes()


def test_shared_directories_are_listed_for_a_script(busybox: Path) -> None:
    share = Share(directory=Path("/d"), mount_point="/a b", mode="ro", transport="virtiofs", tag="t0")
    whole = initramfs.build(shares=[share], deadline=soon())
    assert names(whole) - names(initramfs.build(deadline=soon())) == {"etc/share", "etc/shares"}
    assert b"t0 virtiofs ro /a b\n" in whole.read_bytes()


def test_another_archive_of_modules_makes_another(busybox: Path, modules: Path) -> None:
    once = initramfs.build(modules=modules, deadline=soon())
    assert initramfs.build(modules=modules.rename(modules.with_name("2.cpio")), deadline=soon()) != once


def test_a_busybox_with_libraries_will_not_do() -> None:
    program = process.find("env", package="coreutils")
    with pytest.raises(HostError, match="needs shared libraries") as caught:
        initramfs.check_static(program)
    assert "busybox-static" in caught.value.hint


def test_a_busybox_that_is_a_script(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_text("#!/bin/sh\n")
    with pytest.raises(HostError, match="is not an ELF program"):
        initramfs.check_static(tmp_path / "busybox")


def test_init_says_what_is_waited_for() -> None:
    assert f'echo "{initramfs.READY}"' in (initramfs._HERE / "init.sh").read_text()
