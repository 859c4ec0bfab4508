import tarfile
from pathlib import Path

import pytest

from vmdebug import cache
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.progress import silent
from vmdebug.sources import kernel_source

MARKS = ("Kconfig", "Makefile", "scripts/kconfig/merge_config.sh")


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for mark in MARKS:
        path = tmp_path / "linux-9.9" / mark
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mark)
    return tmp_path / "linux-9.9"


@pytest.fixture
def tarball(tree: Path) -> Path:
    path = tree.with_suffix(".tar.xz")
    with tarfile.open(path, "w:xz") as archive:
        archive.add(tree, tree.name)
    return path


def unpack(tarball: Path) -> Path:
    return kernel_source.unpacked(kernel_source.look(tarball), report=silent, deadline=Deadline.after(30))


def test_the_newest_of_debians_tarballs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_source, "_DEBIAN", tmp_path)
    for version in ("6.1", "6.12", "5.10"):
        (tmp_path / f"linux-source-{version}.tar.xz").touch()
    assert kernel_source.default_source() == tmp_path / "linux-source-6.12.tar.xz"


def test_no_tarball_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_source, "_DEBIAN", tmp_path)
    with pytest.raises(HostError) as caught:
        kernel_source.look(None)
    assert "apt install linux-source" in caught.value.hint


def test_a_directory_is_its_own_source(tree: Path) -> None:
    source = kernel_source.look(tree)
    assert source.changes
    assert kernel_source.unpacked(source, report=silent, deadline=Deadline.after(1)) == tree


@pytest.mark.parametrize("mark", [".config", "include/config/auto.conf", "arch/x86/include/generated/x.h"])
def test_a_tree_that_has_been_built_in(tree: Path, mark: str) -> None:
    (tree / mark).parent.mkdir(parents=True, exist_ok=True)
    (tree / mark).touch()
    with pytest.raises(UsageError, match="has been built in") as caught:
        kernel_source.look(tree)
    assert "mrproper" in caught.value.hint


def test_a_directory_without_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has no Kconfig"):
        kernel_source.look(tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        kernel_source.look(tmp_path / "linux")


def test_the_unpacking_command() -> None:
    assert kernel_source.unpack_argv(Path("/s/linux.tar.xz"), Path("/c/source/key.partial")) == (
        *("tar", "-xvf", "/s/linux.tar.xz", "-C", "/c/source/key.partial"),
        *("--strip-components=1", "--no-same-owner"),
    )


def test_a_tarball_is_unpacked_once(tarball: Path) -> None:
    directory = unpack(tarball)
    assert (directory / "Kconfig").read_text() == "Kconfig"
    (directory / "mark").touch()
    assert unpack(tarball) == directory
    assert (directory / "mark").exists()


def test_an_interrupted_unpack_is_begun_again(tarball: Path) -> None:
    directory = unpack(tarball)
    partial = directory.with_name(f"{directory.name}.partial")
    directory.rename(partial)
    (partial / "half a file").touch()
    assert unpack(tarball) == directory
    assert not (directory / "half a file").exists()
    assert not partial.exists()


def test_another_tarball_is_another_source(tarball: Path) -> None:
    once = unpack(tarball)
    tarball.touch()
    assert unpack(tarball) != once


def test_a_tarball_of_something_else(tree: Path, tarball: Path) -> None:
    with tarfile.open(tarball, "w:xz") as archive:
        archive.add(tree / "Kconfig", "other/Kconfig")
    with pytest.raises(UsageError, match="is not a kernel source: it has no Makefile"):
        unpack(tarball)
    assert [path.suffix for path in cache.directory("source").iterdir()] == [".lock"]


def test_a_broken_tarball(tarball: Path) -> None:
    tarball.write_bytes(tarball.read_bytes()[:100])
    with pytest.raises(BuildError, match="could not be unpacked"):
        unpack(tarball)


def test_no_space(tarball: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_source, "NEEDED", 1e18)
    with pytest.raises(HostError, match="not enough space"):
        unpack(tarball)
