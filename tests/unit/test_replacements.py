from pathlib import Path

import pytest

from tests.unit import kernelfiles
from tests.unit.kernelfiles import ID, OTHER_ID
from vmdebug.errors import MismatchError, UsageError
from vmdebug.guest import Kernel
from vmdebug.guest_options import GuestOptions
from vmdebug.sources.kernels import image, replacements, tree


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "_ROOT", tmp_path / "root")


@pytest.fixture
def own(tmp_path: Path) -> Kernel:
    """The guest's own kernel: an image without symbols beside it; they are in `built/vmlinux`."""
    vmlinux = kernelfiles.vmlinux(tmp_path / "built/vmlinux")
    return image.kernel(kernelfiles.image(tmp_path / "boot/bzImage", vmlinux))


def test_nothing_given_nothing_changed(own: Kernel) -> None:
    assert replacements.apply(own, GuestOptions()) == own


def test_a_tree_brings_all_that_belongs_to_it(tmp_path: Path, own: Kernel) -> None:
    linux = kernelfiles.tree(tmp_path / "linux", OTHER_ID)
    assert replacements.apply(own, GuestOptions(kernel=str(linux))) == tree.kernel(linux)


def test_an_image_brings_its_own_symbols(tmp_path: Path, own: Kernel) -> None:
    vmlinux = kernelfiles.vmlinux(tmp_path / "other/vmlinux", OTHER_ID)
    bzimage = kernelfiles.image(tmp_path / "other/bzImage", vmlinux)
    kernel = replacements.apply(own, GuestOptions(kernel=str(bzimage)))
    assert (kernel.image, kernel.vmlinux, kernel.build_id) == (bzimage, vmlinux, OTHER_ID)


def test_paths_start_at_the_current_directory(
    tmp_path: Path, own: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        replacements.apply(own, GuestOptions(vmlinux="built/vmlinux")).vmlinux == tmp_path / "built/vmlinux"
    )


def test_symbols_from_a_tree_bring_its_scripts(tmp_path: Path) -> None:
    linux = kernelfiles.tree(tmp_path / "linux")
    bare = image.kernel(kernelfiles.image(tmp_path / "boot/bzImage", linux / "vmlinux"))
    kernel = replacements.apply(bare, GuestOptions(vmlinux=str(linux / "vmlinux")))
    assert (kernel.image, kernel.gdb_scripts, kernel.modules) == (bare.image, linux, linux)


def test_given_symbols_are_taken_where_those_beside_the_image_are_wrong(tmp_path: Path, own: Kernel) -> None:
    kernelfiles.vmlinux(tmp_path / "boot/vmlinux", OTHER_ID)
    options = GuestOptions(kernel=str(own.image), vmlinux=str(tmp_path / "built/vmlinux"))
    assert replacements.apply(own, options).vmlinux == tmp_path / "built/vmlinux"


def test_scripts_by_name(tmp_path: Path, own: Kernel) -> None:
    scripts = kernelfiles.gdb_scripts(tmp_path / "scripts-of-mine")
    assert replacements.apply(own, GuestOptions(gdb_scripts=str(scripts))).gdb_scripts == scripts


class TestErrors:
    def test_symbols_of_another_build(self, tmp_path: Path, own: Kernel) -> None:
        other = kernelfiles.vmlinux(tmp_path / "other", OTHER_ID)
        with pytest.raises(MismatchError) as caught:
            replacements.apply(own, GuestOptions(vmlinux=str(other)))
        assert f"{ID} and {OTHER_ID}" in caught.value.message

    def test_no_vmlinux(self, tmp_path: Path, own: Kernel) -> None:
        (tmp_path / "text").write_text("no symbols")
        for name, says in (
            ("gone", "No such file"),
            ("text", "not an ELF file"),
            ("boot", "not a regular file"),
        ):
            with pytest.raises(UsageError, match=says):
                replacements.apply(own, GuestOptions(vmlinux=str(tmp_path / name)))

    def test_scripts_that_would_not_load(self, tmp_path: Path, own: Kernel) -> None:
        scripts = kernelfiles.gdb_scripts(tmp_path / "scripts")
        (scripts / "scripts/gdb/linux/constants.py").unlink()
        with pytest.raises(UsageError, match=r"gdb_scripts=.*constants\.py") as caught:
            replacements.apply(own, GuestOptions(gdb_scripts=str(scripts)))
        assert "make scripts_gdb" in caught.value.hint

    @pytest.mark.parametrize("kernel", ["/gone", "a\0b", "x" * 300])
    def test_no_kernel(self, own: Kernel, kernel: str) -> None:
        with pytest.raises(UsageError, match=r"kernel=.* does not exist"):
            replacements.apply(own, GuestOptions(kernel=kernel))

    def test_a_directory_that_is_no_tree(self, tmp_path: Path, own: Kernel) -> None:
        with pytest.raises(UsageError, match="not a kernel tree"):
            replacements.apply(own, GuestOptions(kernel=str(tmp_path)))


class TestNotes:
    def test_a_whole_tree_needs_none(self, tmp_path: Path) -> None:
        assert replacements.notes(tree.kernel(kernelfiles.tree(tmp_path / "linux"))) == ()

    def test_no_symbols(self, own: Kernel) -> None:
        (note,) = replacements.notes(own)
        assert note.startswith(f"no symbols: no vmlinux beside {own.image}")
        assert "vmlinux=" in note

    def test_symbols_of_another_build_in_a_debug_package(self, tmp_path: Path, own: Kernel) -> None:
        other = kernelfiles.vmlinux(tmp_path / f"root/usr/lib/debug/boot/vmlinux-{own.release}", OTHER_ID)
        (note,) = replacements.notes(own)
        assert f"{other} is of another build" in note

    def test_no_dwarf(self, tmp_path: Path, own: Kernel) -> None:
        plain = kernelfiles.vmlinux(tmp_path / "plain/vmlinux", dwarf=False)
        (dwarf,) = replacements.notes(replacements.apply(own, GuestOptions(vmlinux=str(plain))))
        assert f"{plain} has no debugging information" in dwarf

    def test_no_build_id(self, tmp_path: Path) -> None:
        kernelfiles.vmlinux(tmp_path / "vmlinux")
        packed = tmp_path / "bzImage"
        packed.write_bytes(kernelfiles.raw_bzimage(b"\x89LZO" + bytes(64)))
        assert (
            f"{tmp_path}/vmlinux is taken for this kernel's by its version and build number,"
            " not by a build-id (lzo cannot be unpacked here)"
        ) in replacements.notes(image.kernel(packed))
        packed.write_bytes(kernelfiles.raw_bzimage(b"\x89LZO" + bytes(64), version=""))
        assert any(
            note.startswith("nothing shows whether") for note in replacements.notes(image.kernel(packed))
        )
