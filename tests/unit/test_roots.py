"""Root file systems: what `--root` names, disks that this machine's tools make, directories as images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmdebug import locks, process, roots
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.guest import Root
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report, Step, silent
from vmdebug.roots import Making, directory, image, packed, suite

MIB = 1 << 20


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def making(
    supports: Callable[[str], bool] = lambda _: True, report: Report = silent, *, dry_run: bool = False
) -> Making:
    return Making(supports, "x86_64", report, soon(), dry_run)


def resolve(
    root: str | Path,
    *,
    supports: Callable[[str], bool] = lambda name: name != "VIRTIO_FS",
    dry_run: bool = False,
    **options: Any,
) -> Root:
    found = roots.resolve(GuestOptions(root=str(root), **options), making(supports, dry_run=dry_run))
    assert found is not None
    return found


@pytest.fixture
def chroot(tmp_path: Path) -> Path:
    top = tmp_path / "chroot"
    (top / "bin").mkdir(parents=True)
    (top / "bin/sh").write_text("a shell")
    return top


class TestDirectories:
    def test_without_an_init_there_is_a_shell(self, chroot: Path) -> None:
        found = resolve(chroot)
        assert (found.location, found.file_system, found.init) == (chroot, "9p", "none")
        assert "--root-image" not in found.note, "spelled as the API does"
        assert "cannot be saved or cloned" in found.note

    def test_its_init_is_found_behind_links(self, chroot: Path) -> None:
        (chroot / "usr/lib/systemd").mkdir(parents=True)
        (chroot / "usr/lib/systemd/systemd").touch()
        (chroot / "lib").symlink_to("usr/lib")
        (chroot / "sbin").mkdir()
        (chroot / "sbin/init").symlink_to("/lib/systemd/systemd")
        assert directory.find_init(chroot) == "/lib/systemd/systemd"
        assert resolve(chroot).systemd
        assert not resolve(chroot, init="/bin/sh").systemd

    def test_no_root_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is not a root directory"):
            resolve(tmp_path)
        with pytest.raises(UsageError, match="does not exist"):
            resolve(tmp_path / "gone")

    @pytest.mark.parametrize("options", [{"keep": True}, {"root_dev": 1}, {"root_dev": 0}])
    def test_options_of_images_are_refused(self, chroot: Path, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="is for disk images"):
            resolve(chroot, **options)
        with pytest.raises(UsageError, match="is for disk images"):
            resolve("host", **options)

    @pytest.mark.parametrize(
        "options",
        [
            {"keep": True},
            {"root_dev": 1},
            {"root_dev": 0},
            {"root_image": "never"},
            {"init": "none"},
            {"login": True},
        ],
    )
    def test_options_without_a_root_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="needs a root file system"):
            roots.resolve(GuestOptions(**options), making())


class TestPacking:
    def test_a_directory_is_packed_once_until_it_changes(self, chroot: Path) -> None:
        first = resolve(chroot, root_image="always")
        assert (first.file_system, first.format) == ("erofs", "raw")
        assert image.partitions(image._raw(first.location)) == [image.Partition(0, 0, "erofs")]
        inode = first.location.stat().st_ino
        assert resolve(chroot, root_image="always").location.stat().st_ino == inode
        (chroot / "bin/more").touch()
        assert resolve(chroot, root_image="always").location != first.location
        assert [path.name for path in first.location.parent.iterdir() if path.name.startswith(".")] == []

    def test_what_a_killed_process_has_left_is_removed(self, chroot: Path) -> None:
        first = resolve(chroot, root_image="always").location
        where = first.parent
        left = [f".{first.name}.1.tar", ".debian-trixie-0a.erofs.1.tar", ".oci-0a.root.1"]
        for name in left:
            (where / name).mkdir()
            (where / name / "file").touch()
        (where / ".other.erofs.1").touch()
        (chroot / "bin/more").touch()
        with locks.held(where / "other.erofs.lock", what="", deadline=soon()):
            resolve(chroot, root_image="always")
        assert [path.name for path in where.iterdir() if path.name.startswith(".")] == [".other.erofs.1"]

    def test_paths_that_are_left_out(self, chroot: Path, tmp_path: Path) -> None:
        (chroot / "tmp").mkdir()
        (chroot / "tmp/large").write_bytes(os.urandom(4 * MIB))
        for supports in (lambda _: True, lambda name: name != "EROFS_FS"):
            made, _ = packed.of_directory(chroot, making(supports), ["tmp"])
            assert made.stat().st_size < MIB
            assert packed.of_directory(chroot, making(supports), [])[0].stat().st_size > 4 * MIB

    def test_the_host_s_programs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, ...]] = []

        def of_directory(top: Path, _: Making, left_out: tuple[str, ...]) -> tuple[Path, packed.Format]:
            asked.append((str(top), *left_out))
            return top, packed.FORMATS[0]

        monkeypatch.setattr(packed, "of_directory", of_directory)
        assert "/home" in resolve("host", root_image="always").note
        ((top, *left_out),) = asked
        assert top == "/"
        assert {"dev", "proc", "sys", "tmp"} <= {*left_out}

    def test_the_format_is_one_that_the_kernel_reads(self, chroot: Path) -> None:
        found = resolve(chroot, root_image="always", supports=lambda name: name != "EROFS_FS")
        assert found.file_system == "squashfs"
        assert image.partitions(image._raw(found.location)) == [image.Partition(0, 0, "squashfs")]

    def test_a_machine_without_the_tools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packed.Format, "find", lambda _: None)
        with pytest.raises(HostError, match=r"none of mkfs\.erofs, mksquashfs") as caught:
            packed.choose(lambda _: True)
        assert caught.value.hint == "apt install erofs-utils"


class TestSuites:
    def test_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "find", lambda *_, **__: Path("/usr/bin/mmdebstrap"))
        words = suite.argv("bookworm", Path("/a.tar"))
        assert words[:2] == ("/usr/bin/mmdebstrap", "--variant=minbase")
        assert words[2].startswith("--include=systemd-sysv,udev,dbus,")
        assert words[-3:] == ("--format=tar", "bookworm", "/a.tar")

    def test_it_is_made_once_with_progress(
        self, monkeypatch: pytest.MonkeyPatch, chroot: Path, tmp_path: Path
    ) -> None:
        process.run(["tar", "-cf", tmp_path / "a.tar", "-C", chroot, "."], deadline=soon())
        calls: list[Path] = []

        def argv(_: str, archive: Path) -> tuple[str, ...]:
            calls.append(archive)
            say = "echo 'I: running apt-get update...' >&2"
            return ("sh", "-c", f"{say}; cp {tmp_path}/a.tar {archive}")

        monkeypatch.setattr(suite, "argv", argv)
        steps: list[Step] = []
        wanted = GuestOptions(root="debian:bookworm")
        for _ in range(2):
            found = roots.resolve(wanted, making(report=steps.append))
        assert found is not None
        assert (found.file_system, found.init, found.systemd) == ("erofs", "auto", True)
        assert len(calls) == 1
        assert Step("making debian:bookworm", note="running apt-get update") in steps
        assert [*found.location.parent.iterdir()].count(calls[0]) == 0

    def test_a_dry_run_makes_nothing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(suite, "argv", lambda *_: ("false",))
        found = resolve("debian:bookworm", dry_run=True)
        assert "that is not made yet" in found.note
        assert not found.location.parent.exists()

    def test_it_is_unpacked_if_the_user_wants_a_directory(
        self, monkeypatch: pytest.MonkeyPatch, chroot: Path, tmp_path: Path
    ) -> None:
        process.run(["tar", "-cf", tmp_path / "a.tar", "-C", chroot, "."], deadline=soon())
        monkeypatch.setattr(suite, "argv", lambda _, archive: ("cp", str(tmp_path / "a.tar"), str(archive)))
        found = resolve("debian:bookworm", root_image="never")
        assert (found.file_system, found.format) == ("9p", "")
        assert (found.location / "bin/sh").read_text() == "a shell"
        assert "cannot be saved or cloned" in found.note

    def test_a_suite_that_mmdebstrap_cannot_make(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(suite, "argv", lambda *_: ("sh", "-c", "echo 'E: no Release file' >&2; exit 25"))
        with pytest.raises(BuildError, match="making debian:nosuch: `sh` ended with status 25") as caught:
            resolve("debian:nosuch")
        assert "is the suite's name right" in caught.value.hint
        assert "E: no Release file" in caught.value.detail

    @pytest.mark.parametrize("words", ["ubuntu:noble", "debian:", "debian:-x"])
    def test_others_are_refused(self, words: str) -> None:
        with pytest.raises(UsageError, match="cannot make this distribution"):
            resolve(words)

    @pytest.mark.parametrize("options", [{"keep": True}, {"root_dev": 1}, {"root_dev": 0}])
    def test_options_that_do_not_go_with_it(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="debian:bookworm"):
            resolve("debian:bookworm", **options)


def ext4(path: Path, size: int = 4 * MIB) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
    process.run([shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4", "-q", path], deadline=soon())
    return path


def partitioned(path: Path, table: str, *parts: Path) -> Path:
    """Make a disk with a partition for each file."""
    lines = [f"label: {table}"]
    start = MIB
    with path.open("wb") as disk:
        for part in parts:
            data = part.read_bytes()
            disk.seek(start)
            disk.write(data)
            lines.append(f"start={start // 512}, size={len(data) // 512}, type=L")
            start += len(data)
        disk.truncate(start + MIB)
    sfdisk = shutil.which("sfdisk") or "/usr/sbin/sfdisk"
    process.run([sfdisk, "-q", path], stdin="\n".join(lines).encode(), deadline=soon())
    return path


class TestImages:
    def test_a_file_system_on_the_whole_disk(self, tmp_path: Path) -> None:
        disk = ext4(tmp_path / "disk")
        found = resolve(disk)
        assert (found.file_system, found.format, found.partition, found.keep) == ("ext4", "raw", 0, False)
        assert "discarded" in found.note
        assert resolve(disk, keep=True).keep

    @pytest.mark.parametrize("table", ["gpt", "dos"])
    def test_the_partition_is_found(self, tmp_path: Path, table: str) -> None:
        (tmp_path / "boot").write_bytes(bytes(MIB))
        disk = partitioned(tmp_path / "disk", table, tmp_path / "boot", ext4(tmp_path / "root"))
        assert resolve(disk).partition == 2
        with pytest.raises(UsageError, match="has no file system there") as caught:
            resolve(disk, root_dev=1)
        assert "partition 2: ext4" in caught.value.detail

    def test_of_several_the_user_chooses(self, tmp_path: Path) -> None:
        disk = partitioned(tmp_path / "disk", "gpt", ext4(tmp_path / "a"), ext4(tmp_path / "b"))
        with pytest.raises(UsageError, match="has several file systems"):
            resolve(disk)
        assert resolve(disk, root_dev=2).partition == 2

    def test_a_qcow2_is_read_as_the_guest_sees_it(self, tmp_path: Path) -> None:
        (tmp_path / "boot").write_bytes(bytes(3 * MIB))
        raw = partitioned(tmp_path / "raw", "gpt", tmp_path / "boot", ext4(tmp_path / "root"))
        words: list[str | Path] = [
            "qemu-img",
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            raw,
            tmp_path / "disk.qcow2",
        ]
        process.run(words, deadline=soon())
        found = resolve(tmp_path / "disk.qcow2")
        assert (found.format, found.partition, found.file_system) == ("qcow2", 2, "ext4")

    def test_no_file_system(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(bytes(MIB))
        with pytest.raises(UsageError, match="no file system that vmdebug knows"):
            resolve(tmp_path / "disk")
        with pytest.raises(UsageError, match="is an image already"):
            resolve(tmp_path / "disk", root_image="always")
