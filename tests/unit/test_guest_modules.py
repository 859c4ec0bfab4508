"""The modules of a kernel, from its tree or package to the archive and image of its guest."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.unit import kernelfiles
from tests.unit.kernelfiles import MAGIC, RELEASE
from vmdebug import guest, process
from vmdebug.compiler import GuestProgram
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, MismatchError, UsageError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Step, silent
from vmdebug.sources import initramfs, naming, own
from vmdebug.sources.guest_modules import bundle, extra, module_set, staging
from vmdebug.sources.guest_modules.bundle import Bundle, Wanted
from vmdebug.sources.kernels import image, installed_modules, modules, tree


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "_ROOT", tmp_path / "no root")
    monkeypatch.setattr(installed_modules, "ROOT", tmp_path / "no root")


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A build tree with two modules; one needs the other."""
    top = kernelfiles.tree(tmp_path / "linux")
    kernelfiles.module(top / "lib/first.ko")
    kernelfiles.module(top / "drivers/block/second-one.ko", needs="first")
    (top / "modules.order").write_text("lib/first.ko\ndrivers/block/second-one.o\n")
    (top / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    with (top / ".config").open("a") as config:
        config.write("CONFIG_MODULES=y\n")
    return top


@pytest.fixture
def package(tmp_path: Path, linux: Path) -> Path:
    """An unpacked package with an image and stripped, compressed modules, and its debug package."""
    top = tmp_path / "unpacked"
    kernelfiles.image(top / f"boot/vmlinuz-{RELEASE}", linux / "vmlinux")
    shutil.copytree(linux / "lib", top / f"usr/lib/debug/lib/modules/{RELEASE}/kernel/lib")
    installed = top / f"lib/modules/{RELEASE}/kernel/lib"
    installed.mkdir(parents=True)
    kernelfiles.objcopy("--strip-debug", linux / "lib/first.ko", installed / "first.ko")
    (installed / "first.ko.xz").write_bytes(lzma.compress((installed / "first.ko").read_bytes()))
    (installed / "first.ko").unlink()
    return top


def made(kernel: Kernel, **options: object) -> tuple[Bundle, dict[str, bytes]]:
    """Pack a kernel's modules, and return the archive's files by name."""
    found = module_set.of(kernel)
    assert found is not None
    done = bundle.make(kernel, Wanted(modules=found, **options), report=silent, deadline=soon())  # type: ignore[arg-type]
    return done, unpacked(done.archive)


def unpacked(archive: Path) -> dict[str, bytes]:
    directory = archive.parent / "unpacked"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    process.run(["cpio", "-id", "--quiet"], stdin=archive.read_bytes(), cwd=directory, deadline=soon())
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


HERE = f"lib/modules/{RELEASE}"


class TestATree:
    def test_its_modules_are_stripped_and_indexed(self, linux: Path) -> None:
        done, files = made(tree.kernel(linux))
        assert (done.count, done.image) == (2, None)
        modprobe = files[f"{HERE}/modules.dep"].decode()
        assert modprobe.splitlines() == [
            "kernel/lib/first.ko:",
            "kernel/drivers/block/second-one.ko: kernel/lib/first.ko",
        ]
        assert files[f"{HERE}/modules.builtin"] == b"kernel/fs/ext4/ext4.ko\n"
        assert not modules.has_debug_info(files[f"{HERE}/kernel/lib/first.ko"])
        assert modules.has_debug_info((linux / "lib/first.ko").read_bytes())
        assert files["etc/modules"].decode() == (
            f"modules_release={RELEASE}\nmodules_image=''\nmodules_load=''\n"
        )

    def test_they_are_packed_once(self, linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done, _ = made(tree.kernel(linux))
        monkeypatch.setattr(process, "run", None)
        found = module_set.of(tree.kernel(linux))
        assert found is not None
        again = bundle.make(tree.kernel(linux), Wanted(modules=found), report=silent, deadline=soon())
        assert again == done

    def test_after_make_only_the_new_module_is_copied(self, linux: Path) -> None:
        first, _ = made(tree.kernel(linux))
        kernelfiles.module(linux / "lib/first.ko", MAGIC.replace("SMP", "PMS"))
        steps: list[Step] = []
        found = module_set.of(tree.kernel(linux))
        assert found is not None
        second = bundle.make(tree.kernel(linux), Wanted(modules=found), report=steps.append, deadline=soon())
        assert [step.total for step in steps if step.note == "copying"] == [1]
        assert second.archive != first.archive
        assert b"PMS" in second.archive.read_bytes()

    def test_a_module_that_was_removed_is_not_left(self, linux: Path) -> None:
        made(tree.kernel(linux))
        (linux / "modules.order").write_text("lib/first.ko\n")
        _, files = made(tree.kernel(linux))
        assert [name for name in files if name.endswith(".ko")] == [f"{HERE}/kernel/lib/first.ko"]

    def test_without_modules_it_has_none(self, linux: Path) -> None:
        (linux / "modules.order").unlink()
        assert module_set.of(tree.kernel(linux)) is None


class TestAnImage:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundle, "LARGEST", 1)

    def test_many_modules_become_one(self, linux: Path) -> None:
        with (linux / ".config").open("a") as config:
            config.write("CONFIG_VIRTIO_BLK=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_EROFS_FS=y\n")
        done, files = made(tree.kernel(linux), first=("second_one",))
        assert done.image is not None
        assert (done.format, done.image.suffix) == ("erofs", ".erofs")
        assert (done.archive.parent / "unpacked" / HERE / "kernel").readlink() == Path(".image/kernel")
        assert {name for name in files if name.endswith(".ko")} == {
            f"{bundle.FIRST}/000-first.ko",
            f"{bundle.FIRST}/001-second-one.ko",
        }
        assert f"{HERE}/modules.dep" in files
        assert b"modules_image=erofs" in files["etc/modules"]
        assert "in a read-only erofs image" in done.note(linux)

    def test_one_more_module_of_the_user_s_does_not_make_another(self, linux: Path, tmp_path: Path) -> None:
        with (linux / ".config").open("a") as config:
            config.write("CONFIG_VIRTIO_BLK=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_EROFS_FS=y\n")
        done, _ = made(tree.kernel(linux))
        more, files = made(tree.kernel(linux), extra=(kernelfiles.module(tmp_path / "mine.ko"),))
        assert more.image == done.image
        assert f"{HERE}/vmdebug/mine.ko" in files

    def test_a_kernel_that_cannot_mount_one_is_told(self, linux: Path) -> None:
        done, files = made(tree.kernel(linux))
        assert done.image is None
        assert f"{HERE}/kernel/lib/first.ko" in files
        assert "an image needs VIRTIO_BLK and VIRTIO_PCI" in done.note(linux)


class TestAPackage:
    def test_its_modules_are_found_and_decompressed(self, package: Path) -> None:
        kernel = image.kernel(package / f"boot/vmlinuz-{RELEASE}", search=False)
        assert kernel.modules == package / f"lib/modules/{RELEASE}"
        assert kernel.module_symbols == (package / f"usr/lib/debug/lib/modules/{RELEASE}",)
        _, files = made(kernel)
        assert files[f"{HERE}/kernel/lib/first.ko"].startswith(b"\x7fELF")

    def test_whole_modules_of_a_debug_package_are_enough(self, package: Path, linux: Path) -> None:
        shutil.rmtree(package / "lib")
        kernel = image.kernel(package / f"boot/vmlinuz-{RELEASE}", search=False)
        assert kernel.modules == package / f"usr/lib/debug/lib/modules/{RELEASE}"
        (kernel.modules / "vmlinux").symlink_to(linux / "vmlinux")
        found = module_set.of(kernel)
        assert found is not None
        assert list(found.files) == ["kernel/lib/first.ko"]

    def test_files_with_symbols_only_are_not(self, package: Path) -> None:
        shutil.rmtree(package / "lib")
        file = package / f"usr/lib/debug/lib/modules/{RELEASE}/kernel/lib/first.ko"
        kernelfiles.objcopy("--only-keep-debug", file)
        kernel = image.kernel(package / f"boot/vmlinuz-{RELEASE}", search=False)
        assert kernel.modules is None
        assert kernel.module_files() == (package / f"usr/lib/debug/lib/modules/{RELEASE}",)

    def test_its_vmlinux_is_found_too(self, package: Path, linux: Path) -> None:
        vmlinux = package / f"usr/lib/debug/boot/vmlinux-{RELEASE}"
        vmlinux.parent.mkdir()
        shutil.copy(linux / "vmlinux", vmlinux)
        assert image.kernel(package / f"boot/vmlinuz-{RELEASE}").vmlinux == vmlinux


@pytest.fixture
def initramfs_of(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """The archives of modules in each initramfs."""
    asked: list[Path | None] = []

    def build(*, modules: Path | None = None, **_: object) -> Path:
        asked.append(modules)
        return Path("/initrd")

    monkeypatch.setattr(initramfs, "build", build)
    monkeypatch.setattr(GuestProgram, "find", lambda *_args, **_named: Path("/agent"))
    return asked


@pytest.fixture
def resolve(initramfs_of: list[Path | None]) -> Callable[..., LaunchSpec]:
    def resolved(source: Path, **options: object) -> LaunchSpec:
        wanted = guest.decode(guest.encode({"source": str(source), **options}), GuestOptions)
        return own.resolve(naming.parse(wanted.source), wanted, report=silent, deadline=soon())

    return resolved


class TestTheOptionModules:
    def test_a_package_s_top_or_the_directory_itself(
        self, package: Path, linux: Path, resolve: Callable[..., LaunchSpec]
    ) -> None:
        for words in (package, package / "lib/modules", package / f"lib/modules/{RELEASE}"):
            spec = resolve(linux, modules=str(words))
            assert spec.kernel.modules == package / f"lib/modules/{RELEASE}"

    def test_none(
        self, linux: Path, resolve: Callable[..., LaunchSpec], initramfs_of: list[Path | None]
    ) -> None:
        assert resolve(linux, modules="none").kernel.modules is None
        assert initramfs_of == [None]

    def test_a_directory_without_any(
        self, linux: Path, tmp_path: Path, resolve: Callable[..., LaunchSpec]
    ) -> None:
        with pytest.raises(UsageError, match=f"no modules of {RELEASE} in") as caught:
            resolve(linux, modules=str(tmp_path / "unpacked"))
        assert "lib/modules/RELEASE" in caught.value.hint

    def test_those_of_another_kernel(
        self, linux: Path, tmp_path: Path, resolve: Callable[..., LaunchSpec]
    ) -> None:
        kernelfiles.module(tmp_path / "other/kernel/a.ko", "5.4.0 SMP ")
        with pytest.raises(MismatchError, match=r"is of another build: its vermagic is '5.4.0 SMP '"):
            resolve(linux, modules=str(tmp_path / "other"))
        assert resolve(linux, modules=str(tmp_path / "other"), force=True).kernel.modules is not None


class TestTheOptionModule:
    def test_it_is_packed_loaded_and_known_to_gdb(
        self,
        linux: Path,
        tmp_path: Path,
        resolve: Callable[..., LaunchSpec],
        initramfs_of: list[Path | None],
    ) -> None:
        mine = kernelfiles.module(tmp_path / "my-own.ko", needs="first")
        spec = resolve(linux, module=[str(mine)])
        assert spec.kernel.module_files() == (mine, linux)
        (archive,) = initramfs_of
        assert archive is not None
        files = unpacked(archive)
        assert f"{HERE}/vmdebug/my_own.ko" in files
        assert "vmdebug/my_own.ko: kernel/lib/first.ko\n" in files[f"{HERE}/modules.dep"].decode()
        assert b"modules_load=my_own\n" in files["etc/modules"]
        assert resolve(linux, module=[str(mine)], load_modules=False).kernel == spec.kernel
        assert initramfs_of[1] is not None
        assert b"modules_load=''" in unpacked(initramfs_of[1])["etc/modules"]

    @pytest.mark.parametrize("suffix", [".ko.xz", ".ko.zst"])
    def test_a_compressed_one(self, linux: Path, tmp_path: Path, suffix: str) -> None:
        mine = kernelfiles.module(tmp_path / "mine.ko")
        pack = lzma.compress if suffix == ".ko.xz" else zstandard.ZstdCompressor().compress
        packed = tmp_path / f"mine{suffix}"
        packed.write_bytes(pack(mine.read_bytes()))
        _, files = made(tree.kernel(linux), extra=(packed,))
        assert files[f"{HERE}/vmdebug/mine.ko"].startswith(b"\x7fELF")

    def test_a_kernel_without_other_modules(
        self, linux: Path, tmp_path: Path, resolve: Callable[..., LaunchSpec], initramfs_of: list[Path | None]
    ) -> None:
        (linux / "modules.order").unlink()
        mine = kernelfiles.module(tmp_path / "mine.ko")
        spec = resolve(linux, module=[str(mine)])
        assert spec.machine == OwnMachine(initrd=Path("/initrd"))
        assert initramfs_of[0] is not None

    def test_one_for_another_kernel_is_refused(
        self, linux: Path, tmp_path: Path, resolve: Callable[..., LaunchSpec]
    ) -> None:
        mine = kernelfiles.module(tmp_path / "src/mine.ko", "6.1.0-other SMP mod_unload ")
        with pytest.raises(MismatchError, match="is built for another kernel: its vermagic is") as caught:
            resolve(linux, module=[str(mine)])
        assert caught.value.hint.startswith(f"build it: make -C {linux} M={mine.parent} modules; ")
        assert resolve(linux, module=[str(mine)], force=True).kernel.module_symbols == (mine,)

    def test_what_is_no_module(self, linux: Path, tmp_path: Path, resolve: Callable[..., LaunchSpec]) -> None:
        with pytest.raises(UsageError, match="there is no file"):
            resolve(linux, module=[str(tmp_path / "gone.ko")])
        (tmp_path / "text.ko").write_text("text")
        with pytest.raises(UsageError, match="is not a kernel module"):
            resolve(linux, module=[str(tmp_path / "text.ko")])

    def test_two_of_the_same_name(
        self, linux: Path, tmp_path: Path, resolve: Callable[..., LaunchSpec]
    ) -> None:
        one, two = (str(kernelfiles.module(tmp_path / each / "mine.ko")) for each in "ab")
        with pytest.raises(UsageError, match="a module of the same name, mine"):
            resolve(linux, module=[one, two])

    def test_a_kernel_without_modules_at_all(
        self, linux: Path, tmp_path: Path, resolve: Callable[..., LaunchSpec]
    ) -> None:
        (linux / ".config").write_text("CONFIG_X86_64=y\n")
        with pytest.raises(UsageError, match="loads no modules: CONFIG_MODULES is n"):
            resolve(linux, module=[str(kernelfiles.module(tmp_path / "mine.ko"))])


def test_the_release_does_not_count_where_symbols_have_versions() -> None:
    """As in `same_magic` of kernel/module."""
    wanted = "6.1.0 SMP mod_unload modversions "
    assert modules.fits("6.1.0-1 SMP mod_unload modversions ", wanted, has_versions=True)
    assert not modules.fits("6.1.0-1 SMP mod_unload modversions ", wanted, has_versions=False)
    assert not modules.fits("6.1.0 mod_unload modversions ", wanted, has_versions=True)
    assert modules.fits("6.1.0 SMP ", "6.1.0", has_versions=False)
    assert not modules.fits("6.1.1 SMP ", "6.1.0", has_versions=False)


def test_depmod_prefers_the_user_s_modules() -> None:
    argv = staging.depmod_argv(Path("/sbin/depmod"), Path("/stage"), Path("/stage/depmod.conf"), "6.1.0")
    assert argv == ("/sbin/depmod", "-b", "/stage", "-C", "/stage/depmod.conf", "6.1.0")
    assert f"search {staging.EXTRA} updates built-in\n" == staging._DEPMOD_CONFIG


def test_without_kmod_the_guest_has_no_modules(
    linux: Path,
    tmp_path: Path,
    resolve: Callable[..., LaunchSpec],
    initramfs_of: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = kernelfiles.module(tmp_path / "mine.ko")
    monkeypatch.setattr(staging, "_which", lambda _: None)
    assert "the guest has no modules: depmod is not on PATH; apt install kmod" in resolve(linux).notes
    assert initramfs_of == [None]
    with pytest.raises(HostError, match="depmod is not on PATH") as caught:
        resolve(linux, module=[str(mine)])
    assert "apt install kmod" in caught.value.hint


def test_extra_modules_are_searched_first() -> None:
    kernel = Kernel(image=Path("/i"), origin="", arch="x86_64", modules=Path("/m"))
    assert extra.with_symbols(kernel, (Path("/a.ko"),)).module_files() == (Path("/a.ko"), Path("/m"))
