from pathlib import Path

import pytest

from tests.unit import kernelfiles
from tests.unit.kernelfiles import ID, OTHER_ID, RELEASE
from vmdebug.errors import MismatchError, UsageError
from vmdebug.guest import Kernel
from vmdebug.sources.kernels import image


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "_ROOT", tmp_path / "root")


@pytest.fixture
def bzimage(tmp_path: Path) -> Path:
    """An image alone in its directory; its vmlinux is elsewhere."""
    kernel = kernelfiles.vmlinux(tmp_path / "built/vmlinux")
    return kernelfiles.image(tmp_path / "boot/bzImage", kernel)


def test_without_symbols(bzimage: Path) -> None:
    assert image.kernel(bzimage) == Kernel(
        image=bzimage, origin=f"the image {bzimage}", arch="x86_64", build_id=ID, release=RELEASE
    )


@pytest.mark.parametrize(
    "place",
    [
        "boot/vmlinux",
        f"boot/vmlinux-{RELEASE}",
        f"root/usr/lib/debug/boot/vmlinux-{RELEASE}",
        f"root/usr/lib/debug/lib/modules/{RELEASE}/vmlinux",
        f"root/lib/modules/{RELEASE}/build/vmlinux",
    ],
)
def test_symbols_are_found(tmp_path: Path, bzimage: Path, place: str) -> None:
    vmlinux = kernelfiles.vmlinux(tmp_path / place)
    assert image.kernel(bzimage).vmlinux == vmlinux
    assert image.kernel(bzimage, search=False).vmlinux is None


def test_an_image_in_its_tree_has_all_of_the_tree(tmp_path: Path) -> None:
    linux = kernelfiles.tree(tmp_path / "linux")
    kernel = image.kernel(linux / "arch/x86/boot/bzImage")
    assert (kernel.vmlinux, kernel.gdb_scripts, kernel.modules, kernel.source) == (
        linux / "vmlinux",
        linux,
        linux,
        linux,
    )


def test_a_link_is_followed(tmp_path: Path, bzimage: Path) -> None:
    vmlinux = kernelfiles.vmlinux(tmp_path / "boot/vmlinux")
    (tmp_path / "vmlinuz").symlink_to(bzimage)
    kernel = image.kernel(tmp_path / "vmlinuz")
    assert kernel.image == bzimage
    assert kernel.vmlinux == vmlinux


def test_another_vmlinux_beside_it_is_an_error(tmp_path: Path, bzimage: Path) -> None:
    kernelfiles.vmlinux(tmp_path / "boot/vmlinux", OTHER_ID)
    with pytest.raises(MismatchError, match=OTHER_ID):
        image.kernel(bzimage)


def test_another_vmlinux_beside_the_right_one_is_passed_over(tmp_path: Path, bzimage: Path) -> None:
    kernelfiles.vmlinux(tmp_path / "boot/vmlinux", OTHER_ID)
    right = kernelfiles.vmlinux(tmp_path / f"boot/vmlinux-{RELEASE}")
    assert image.kernel(bzimage).vmlinux == right


def test_a_debug_package_of_another_build_is_passed_over(tmp_path: Path, bzimage: Path) -> None:
    kernelfiles.vmlinux(tmp_path / f"root/usr/lib/debug/boot/vmlinux-{RELEASE}", OTHER_ID)
    assert image.kernel(bzimage).vmlinux is None


def test_a_release_leads_to_no_other_directory(tmp_path: Path, bzimage: Path) -> None:
    kernelfiles.vmlinux(tmp_path / "vmlinux")
    assert list(image.beside(bzimage, "x/../../vmlinux")) == []
    assert list(image.installed("../../vmlinux")) == []


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        image.kernel(tmp_path / "gone")
    (tmp_path / "text").write_text("no kernel")
    with pytest.raises(UsageError, match="not a boot image"):
        image.kernel(tmp_path / "text")
