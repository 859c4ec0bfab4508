"""Directories of this machine in a guest: the option's words, and virtiofsd's command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vmdebug import config
from vmdebug.errors import UsageError
from vmdebug.guest import Share
from vmdebug.guest_options import GuestOptions, changed, split_share
from vmdebug.roots import shares, virtiofsd
from vmdebug.roots.virtiofsd import Server


def resolve(*words: str) -> tuple[Share, ...]:
    return shares.resolve(GuestOptions(share=words), lambda _: False)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("dir", ("dir", "", "")),
        ("dir:rw", ("dir", "", "rw")),
        ("/a:/b", ("/a", "/b", "")),
        ("/a:/b:overlay", ("/a", "/b", "overlay")),
        ("/a:b:/c:ro", ("/a:b", "/c", "ro")),
        ("/a:b", ("/a:b", "", "")),
    ],
)
def test_the_words(words: str, parts: tuple[str, str, str]) -> None:
    assert split_share(words) == parts


def test_a_directory_is_read_only_and_at_its_own_path(tmp_path: Path) -> None:
    (share,) = resolve(str(tmp_path))
    assert share == Share(
        directory=tmp_path, mount_point=str(tmp_path), mode="ro", transport="9p", tag="vmdebug-share0"
    )
    (share,) = resolve(f"{tmp_path}:/mnt/:rw")
    assert (share.mount_point, share.mode, share.read_only) == ("/mnt", "rw", False)


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no directory /gone"):
        resolve("/gone:/mnt")
    with pytest.raises(UsageError, match="the guest cannot have it at /"):
        resolve(f"{tmp_path}:/")
    with pytest.raises(UsageError, match="two directories have the place /mnt"):
        resolve(f"{tmp_path}:/mnt", "/usr:/mnt")


@pytest.mark.parametrize("place", ["/proc", "/sys/kernel", "/dev", "/run", "/run/vmdebug", "/bin", "//etc"])
def test_a_place_whose_files_the_guest_needs(tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError, match=r"the guest cannot have it at .*: it needs what is there"):
        resolve(f"{tmp_path}:{place}")


def test_places_beside_those(tmp_path: Path) -> None:
    words = (f"{tmp_path}:/devel", f"{tmp_path}:/run/user", f"{tmp_path}:/etc/app", f"{tmp_path}:/usr")
    assert len(resolve(*words)) == len(words)
    # A root file system is used from /run/vmdebug.
    options = GuestOptions(share=(f"{tmp_path}:/bin", f"{tmp_path}:/etc"), root="/root")
    assert len(shares.resolve(options, lambda _: False)) == 2


@pytest.mark.parametrize("given", ["d:/mnt", ["d:/mnt"], ("d:/mnt",), Path("d:/mnt")])
def test_one_directory_or_several(given: Any) -> None:
    assert changed(GuestOptions(), {"share": given}).share == ("d:/mnt",)


def test_in_vmdebug_toml_paths_start_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / config.FILE
    file.write_text('[guest.a]\nshare = "d:/mnt:rw"\n[guest.b]\nshare = ["d", "/e:/f"]\n')
    found = config.read(file).guests
    assert found["a"].share == (f"{tmp_path}/d:/mnt:rw",)
    assert found["b"].share == (f"{tmp_path}/d", "/e:/f")
    file.write_text("[guest.a]\nshare = [1]\n")
    with pytest.raises(UsageError, match=r"\[guest\.a\] share"):
        config.read(file)


def test_qemu_s_virtiofsd() -> None:
    server = Server(Path("/usr/lib/qemu/virtiofsd"), rust=False, read_only=False)
    words = server.argv(Path("/a,b"), 7, read_only=False)
    command = "/usr/lib/qemu/virtiofsd --fd=7 -f -o log_level=err -o sandbox=namespace -o source=/a\\,b"
    assert list(words) == command.split()
    words = server.argv(Path("/a"), 7, read_only=True)
    assert words[:6] == ("unshare", "--mount", "--propagation", "private", "sh", "-c")
    assert words[7:10] == ("sh", "/a", "/usr/lib/qemu/virtiofsd")


def test_the_virtiofsd_in_rust() -> None:
    server = Server(Path("/usr/libexec/virtiofsd"), rust=True, read_only=True, sandbox="none")
    words = server.argv(Path("/a,b"), 7, read_only=True)
    command = "/usr/libexec/virtiofsd --fd=7 --shared-dir=/a,b --sandbox=none --log-level=error --readonly"
    assert list(words) == command.split()


def test_another_program_of_that_name_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "virtiofsd"
    program.write_text("#!/bin/sh\necho usage\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert virtiofsd.find(tmp_path, read_only=True) is None
    assert virtiofsd.choose(lambda _: True, tmp_path, read_only=True) == "9p"


def test_a_kernel_without_virtiofs_gets_9p(tmp_path: Path) -> None:
    assert virtiofsd.choose(lambda _: None, tmp_path, read_only=False) == "9p"


def test_in_a_nixos_vm_systemd_mounts_them(tmp_path: Path) -> None:
    plain = "trans=virtio,version=9p2000.L,msize=262144,cache=mmap"
    assert shares.for_systemd(resolve(f"{tmp_path}:/mnt:rw")) == (
        f"systemd.mount-extra=vmdebug-share0:/mnt:9p:rw,{plain}",
    )
    with pytest.raises(UsageError, match="there is no overlay"):
        shares.for_systemd(resolve(f"{tmp_path}:/mnt:overlay"))
