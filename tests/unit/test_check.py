"""`kernel check`: each row, with small kernels made by the tests."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zstandard

from tests.unit import kernelfiles
from tests.unit.kernelfiles import BANNER, ID, OTHER_ID, RELEASE, objcopy
from vmdebug import kimage, sources
from vmdebug.arch import by_name
from vmdebug.cli import status_of
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine, RunnerMachine
from vmdebug.sources import check
from vmdebug.sources.check import Row
from vmdebug.sources.configuration import requirements
from vmdebug.sources.kernels import tree

CONFIG = "".join(f"CONFIG_{need.option}=y\n" for need in requirements.own(by_name("x86_64")))
MAGIC = f"{RELEASE} SMP mod_unload "
RUNNER = RunnerMachine(script=Path("/run-nixos-vm"), system_name="nixos")
OVERRIDDEN = msgspec.structs.replace(RUNNER, kernel_override=True)


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A built tree with everything."""
    linux = kernelfiles.tree(tmp_path / "linux")
    (linux / ".config").write_text(CONFIG)
    (linux / "init/main.c").write_text("")
    with (linux / "vmlinux").open("ab") as file:
        file.write(b"\0%s\0" % MAGIC.encode())
    return linux


def module(path: Path, magic: str = MAGIC) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"\x7fELF\0.debug_info\0license=GPL\0vermagic=%s\0" % magic.encode()
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    path.write_bytes(packers.get(path.suffix, bytes)(content))
    return path


def rows(kernel: Kernel, machine: OwnMachine | RunnerMachine | None = None) -> dict[str, Row]:
    spec = LaunchSpec(name="linux", guest="linux", machine=machine or OwnMachine(), kernel=kernel)
    return {row.subject: row for row in check.table(spec)}


def test_a_whole_tree_is_all_right(linux: Path) -> None:
    module(linux / "drivers/block/brd.ko")
    table = rows(tree.kernel(linux))
    assert {row.state for row in table.values()} == {"ok"}
    assert list(table) == [
        *("image", "vmlinux", "DWARF", "gdb scripts", "constants.py", "modules", "source", "built-ins")
    ]
    assert table["image"].found == f"{linux}/arch/x86/boot/bzImage, the tree {linux}: {RELEASE}"
    assert table["image"].reason == f"build-id {ID}, of the kernel inside, gzip"
    assert table["vmlinux"].reason == f"build-id {ID} in its note, the same as in the image"
    assert table["DWARF"].found == "version 5"


def test_a_vmlinux_of_another_build_is_bad_and_names_both(linux: Path) -> None:
    kernel = tree.kernel(linux)
    kernelfiles.vmlinux(linux / "vmlinux", OTHER_ID)
    row = rows(kernel)["vmlinux"]
    assert row.state == "bad"
    assert f"{ID} and {OTHER_ID}" in row.reason
    assert "vmlinux=" in row.reason


def test_without_a_build_id_the_banner_is_a_warning(tmp_path: Path) -> None:
    vmlinux = kernelfiles.vmlinux(tmp_path / "vmlinux", "", banner=BANNER)
    image = kernelfiles.image(tmp_path / "bzImage", vmlinux)
    table = rows(Kernel(arch="x86_64", image=image, origin="the image", release=RELEASE, vmlinux=vmlinux))
    assert (table["image"].state, table["vmlinux"].state) == ("warning", "warning")
    assert "has the version and build date" in table["vmlinux"].reason


def test_nothing_but_an_image(linux: Path) -> None:
    table = rows(
        Kernel(arch="x86_64", image=linux / "arch/x86/boot/bzImage", origin="the image", release=RELEASE)
    )
    warnings = [name for name, row in table.items() if row.state == "warning"]
    assert warnings == [name for name in table if name != "image"]
    assert "vmlinux=" in table["vmlinux"].reason
    assert "vmdebug kernel scripts" in table["gdb scripts"].reason


class TestDwarf:
    def test_its_version_and_where_it_is(self, linux: Path) -> None:
        vmlinux = linux / "vmlinux"
        assert rows(tree.kernel(linux))["DWARF"] == Row("DWARF", "ok", "version 5")
        objcopy("--only-keep-debug", vmlinux, linux / "vmlinux.debug")
        objcopy("--strip-debug", f"--add-gnu-debuglink={linux / 'vmlinux.debug'}", vmlinux)
        found = rows(tree.kernel(linux))["DWARF"]
        assert (found.state, found.found) == (
            "ok",
            f"version 5, in {linux / 'vmlinux.debug'}, by its .gnu_debuglink",
        )
        (linux / "vmlinux.debug").unlink()
        table = rows(tree.kernel(linux))
        assert table["DWARF"].found == "none"
        assert kimage.WITHOUT_DWARF in table["DWARF"].reason
        assert table["gdb scripts"].reason == "they need the types of debugging information"

    def test_split_files_that_are_gone(self, linux: Path) -> None:
        kernelfiles.split(linux / "vmlinux")
        (linux / "vmlinux-kernel.dwo").unlink()
        row = rows(tree.kernel(linux))["DWARF"]
        assert (row.state, row.found) == ("warning", "version 5, split: 1 .dwo files")
        assert f"do not exist: {linux / 'vmlinux-kernel.dwo'}" in row.reason


class TestConstants:
    @pytest.mark.parametrize(("switch", "state"), [("1", "ok"), ("0", "bad")])
    def test_made_for_this_configuration_or_another(self, linux: Path, switch: str, state: str) -> None:
        constants = linux / "scripts/gdb/linux/constants.py"
        constants.write_text(f"LX_CONFIG_OF = 0\nLX_CONFIG_BINFMT_ELF = {switch}\n")
        row = rows(tree.kernel(linux))["constants.py"]
        assert row.state == state
        assert ("CONFIG_BINFMT_ELF is y" in row.reason) == (state == "bad")


class TestModules:
    @pytest.mark.parametrize("suffix", [".ko", ".ko.gz", ".ko.xz", ".ko.zst"])
    @pytest.mark.parametrize(
        ("magic", "state"),
        [
            (MAGIC, "ok"),
            (f"{RELEASE} SMP preempt mod_unload ", "bad"),
            ("6.2.0 SMP mod_unload ", "bad"),
        ],
    )
    def test_by_the_vermagic_in_the_vmlinux(
        self, linux: Path, tmp_path: Path, suffix: str, magic: str, state: str
    ) -> None:
        there = module(tmp_path / f"modules/kernel/brd{suffix}", magic)
        kernel = msgspec.structs.replace(tree.kernel(linux), modules=tmp_path / "modules")
        row = rows(kernel)["modules"]
        assert (row.state, row.found) == (state, f"1 in {tmp_path}/modules")
        assert (str(there) in row.reason and MAGIC in row.reason) == (state == "bad")

    @pytest.mark.parametrize(("magic", "state"), [(MAGIC, "warning"), ("6.2.0 SMP ", "bad")])
    def test_without_symbols_by_the_release(
        self, linux: Path, tmp_path: Path, magic: str, state: str
    ) -> None:
        module(tmp_path / "modules/brd.ko", magic)
        image = linux / "arch/x86/boot/bzImage"
        kernel = Kernel(
            arch="x86_64", image=image, origin="the image", release=RELEASE, modules=tmp_path / "modules"
        )
        assert rows(kernel)["modules"].state == state

    def test_one_that_cannot_be_unpacked_says_nothing(self, linux: Path, tmp_path: Path) -> None:
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules/brd.ko.xz").write_bytes(b"cut off")
        kernel = msgspec.structs.replace(tree.kernel(linux), modules=tmp_path / "modules")
        assert rows(kernel)["modules"].state == "warning"

    def test_without_debug_information(self, linux: Path, tmp_path: Path) -> None:
        whole = module(tmp_path / "debug/brd.ko")
        (tmp_path / "modules").mkdir()
        stripped = whole.read_bytes().replace(b".debug_info\0", b"")
        (tmp_path / "modules/brd.ko").write_bytes(stripped)
        kernel = msgspec.structs.replace(tree.kernel(linux), modules=tmp_path / "modules")
        row = rows(kernel)["modules"]
        assert (row.state, row.reason.partition(":")[0]) == ("warning", "they have no debug information")
        packaged = msgspec.structs.replace(kernel, module_symbols=(tmp_path / "debug",))
        row = rows(packaged)["modules"]
        assert (row.state, row.found) == ("ok", f"1 in {tmp_path}/modules, symbols in {tmp_path}/debug")


class TestBuiltIns:
    ALL = "".join(f"CONFIG_{need.option}=y\n" for need in requirements.RUNNER)

    def test_a_runner_that_boots_its_own_kernel_needs_none(self, linux: Path) -> None:
        assert rows(tree.kernel(linux), RUNNER)["built-ins"].state == "ok"

    @pytest.mark.parametrize(
        ("config", "state", "found"),
        [
            (ALL, "ok", "ext4, virtio_blk, virtio_pci, 9p, 9pnet_virtio, overlay, BLK_DEV_INITRD"),
            (ALL.replace("9P_FS=y", "9P_FS=m"), "bad", "lacking: 9P_FS=m"),
            ("", "bad", "lacking: EXT4_FS=n, VIRTIO_BLK=n"),
        ],
    )
    def test_of_a_kernel_that_overrides_a_runners(
        self, linux: Path, config: str, state: str, found: str
    ) -> None:
        (linux / ".config").write_text(config)
        row = rows(tree.kernel(linux), OVERRIDDEN)["built-ins"]
        assert row.state == state
        assert row.found.startswith(found)
        assert str(linux / ".config") in row.reason

    def test_by_what_is_inside_the_kernel(self, linux: Path) -> None:
        kernel = tree.kernel(linux)
        (linux / ".config").unlink()
        with (linux / "vmlinux").open("ab") as file:
            file.write(b"IKCFG_ST" + gzip.compress(self.ALL.encode()) + b"IKCFG_ED")
        row = rows(kernel, OVERRIDDEN)["built-ins"]
        assert (row.state, row.reason) == ("ok", f"according to the .config inside {linux}/vmlinux")

    def test_by_modules_builtin(self, linux: Path) -> None:
        kernel = tree.kernel(linux)
        (linux / ".config").unlink()
        (linux / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/fs/9p/9p.ko\n")
        row = rows(kernel, OVERRIDDEN)["built-ins"]
        assert (row.state, row.found.split()[1]) == ("bad", "VIRTIO_BLK=not")

    def test_nothing_tells(self, linux: Path) -> None:
        kernel = tree.kernel(linux)
        (linux / ".config").unlink()
        assert rows(kernel, OVERRIDDEN)["built-ins"].state == "warning"

    def test_of_our_own_initramfs(self, linux: Path) -> None:
        (linux / ".config").write_text(CONFIG.replace("CONFIG_BLK_DEV_INITRD=y", ""))
        row = rows(tree.kernel(linux))["built-ins"]
        assert (row.state, row.found) == ("warning", "lacking: BLK_DEV_INITRD=n")


class TestVerb:
    @pytest.fixture(autouse=True)
    def _resolved(self, linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def resolve(options: object, **_: object) -> LaunchSpec:
            return LaunchSpec(
                name="linux", guest="linux", machine=OwnMachine(), kernel=tree.kernel(linux, force=True)
            )

        monkeypatch.setattr(sources, "resolve", resolve)

    def test_nothing_bad(self, capsys: pytest.CaptureFixture[str], linux: Path) -> None:
        assert status_of(["kernel", "check", str(linux)]) == 0
        assert f"     vmlinux  ok       {linux}/vmlinux: {RELEASE}\n" in capsys.readouterr().out

    def test_a_mismatch_is_status_4_and_the_whole_table_is_printed(
        self, capsys: pytest.CaptureFixture[str], linux: Path
    ) -> None:
        kernelfiles.vmlinux(linux / "vmlinux", OTHER_ID)
        assert status_of(["kernel", "check", str(linux), "--json"]) == 4
        said = json.loads(capsys.readouterr().out)
        assert said["guest"] == "linux"
        states = {row["subject"]: row["state"] for row in said["rows"]}
        assert (states["vmlinux"], states["gdb scripts"]) == ("bad", "ok")
