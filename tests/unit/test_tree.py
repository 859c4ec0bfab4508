from pathlib import Path

import pytest

from tests.unit import kernelfiles
from tests.unit.kernelfiles import ID, OTHER_ID, RELEASE
from vmdebug.errors import MismatchError, UsageError
from vmdebug.guest import Kernel
from vmdebug.sources.kernels import tree


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_everything_comes_from_the_tree(tmp_path: Path) -> None:
    linux = kernelfiles.tree(tmp_path / "linux")
    assert tree.kernel(linux) == Kernel(
        image=linux / "arch/x86/boot/bzImage",
        origin=f"the tree {linux}",
        arch="x86_64",
        build_id=ID,
        release=RELEASE,
        vmlinux=linux / "vmlinux",
        gdb_scripts=linux,
        modules=linux,
        source=linux,
    )


@pytest.mark.parametrize("lost", ["vmlinux-gdb.py", "scripts/gdb/linux/constants.py"])
def test_scripts_that_would_not_load_are_left_out(tmp_path: Path, lost: str) -> None:
    linux = kernelfiles.tree(tmp_path / "linux")
    (linux / lost).unlink()
    assert tree.kernel(linux).gdb_scripts is None


class TestWhereRelativePathsStart:
    def test_in_tree_at_the_tree(self, tmp_path: Path) -> None:
        linux = kernelfiles.tree(tmp_path / "linux")
        assert tree.source(linux) == tree.paths_start(linux) == linux

    def test_right_in_its_source_at_the_tree_for_they_begin_with_dots(self, tmp_path: Path) -> None:
        linux = tmp_path / "linux"
        built = kernelfiles.tree(linux / "build", source=linux)
        assert tree.source(built) == linux
        assert tree.paths_start(built) == built

    def test_elsewhere_at_the_source(self, tmp_path: Path) -> None:
        built = kernelfiles.tree(tmp_path / "out", source=tmp_path / "linux")
        assert tree.kernel(built).source == tmp_path / "linux"

    @pytest.mark.parametrize("says", ["include {}/Makefile\n", "MAKEARGS := -C {}\nMAKEARGS += O=.\n"])
    def test_the_makefile_knows_where_there_is_no_link(self, tmp_path: Path, says: str) -> None:
        built = kernelfiles.tree(tmp_path / "out", source=tmp_path / "linux")
        (built / "source").unlink()
        (built / "Makefile").write_text("# don't edit\n" + says.format(tmp_path / "linux"))
        assert tree.source(built) == tmp_path / "linux"

    def test_a_source_that_is_gone(self, tmp_path: Path) -> None:
        built = kernelfiles.tree(tmp_path / "out", source=tmp_path / "linux")
        (tmp_path / "linux").rename(tmp_path / "moved")
        assert tree.source(built) is None
        assert tree.paths_start(built) == built


class TestErrors:
    def test_no_tree(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"not a kernel tree: it has none of vmlinux, .*init/Kconfig"):
            tree.kernel(tmp_path)

    def test_not_configured(self, tmp_path: Path) -> None:
        (tmp_path / "init").mkdir()
        (tmp_path / "init/Kconfig").write_text("")
        with pytest.raises(UsageError, match=f"no vmlinux in {tmp_path}: it is not built") as caught:
            tree.kernel(tmp_path)
        assert f"make -C {tmp_path} defconfig kvm_guest.config && make -C {tmp_path}" in caught.value.hint

    def test_not_built(self, tmp_path: Path) -> None:
        (tmp_path / ".config").write_text("")
        with pytest.raises(UsageError, match="no vmlinux") as caught:
            tree.kernel(tmp_path)
        assert caught.value.hint == f"run make -C {tmp_path} -j$(nproc)"

    def test_no_boot_image(self, tmp_path: Path) -> None:
        linux = kernelfiles.tree(tmp_path / "linux")
        (linux / "arch/x86/boot/bzImage").unlink()
        with pytest.raises(
            UsageError, match=r"no boot image in .*: wanted .*/arch/x86/boot/bzImage"
        ) as caught:
            tree.kernel(linux)
        assert "make -C" in caught.value.hint

    def test_a_vmlinux_that_was_made_after_the_image(self, tmp_path: Path) -> None:
        linux = kernelfiles.tree(tmp_path / "linux")
        kernelfiles.vmlinux(linux / "vmlinux", OTHER_ID)
        with pytest.raises(MismatchError, match=f"{ID} and {OTHER_ID}") as caught:
            tree.kernel(linux)
        assert caught.value.hint.startswith(f"run make -C {linux} -j$(nproc);")
