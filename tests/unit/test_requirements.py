"""What the guest of a runner needs built in; a kernel that lacks it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import kernelfiles
from vmdebug import shipped
from vmdebug.cli import status_of
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel
from vmdebug.sources.configuration import dotconfig, lacks, requirements
from vmdebug.sources.kernels import tree

SCRIPT = "mkfs.ext4 -L nixos\nqemu -virtfs local,path=/nix/store -device virtio-blk-pci,drive=drive1\n"


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    script = tmp_path / "vm/bin/run-nixos-vm"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT)
    return script


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return tree.kernel(kernelfiles.tree(tmp_path / "linux"))


def configure(kernel: Kernel, text: str) -> None:
    assert kernel.vmlinux is not None
    (kernel.vmlinux.parent / ".config").write_text(text)


def options(script: Path) -> set[str]:
    return {need.option for need in requirements.of_runner(script)}


def test_what_the_script_starts_qemu_with(runner: Path) -> None:
    assert options(runner) == {
        "BLK_DEV_INITRD",
        "VIRTIO_BLK",
        "VIRTIO_PCI",
        "EXT4_FS",
        "9P_FS",
        "NET_9P_VIRTIO",
    }


def test_what_the_system_mounts_unpacks_and_starts(runner: Path) -> None:
    system = runner.parent.parent / "system"
    (system / "etc").mkdir(parents=True)
    (system / "etc/fstab").write_text("# made\noverlay /nix/store overlay lowerdir=/nix/.ro-store 0 0\n")
    (system / "initrd").write_bytes(b"\x28\xb5\x2f\xfd packed")
    (system / "systemd").mkdir()
    assert options(runner) > {"OVERLAY_FS", "RD_ZSTD", "CGROUPS", "FHANDLE"}


@pytest.mark.parametrize(
    "named", ["a link, as in NixOS 25.05", "boot.json, as in later ones with system.nixos-init"]
)
def test_an_etc_that_the_initrd_mounts(runner: Path, named: str) -> None:
    system = runner.parent.parent / "system"
    system.mkdir()
    (system / "boot.json").write_text('{"org.nixos.nixos-init.v1":{}}')
    overlay = {"EROFS_FS", "OVERLAY_FS", "BLK_DEV_LOOP"}
    assert not overlay & options(runner)
    if named.startswith("a link"):
        (system / "etc-metadata-image").write_text("")
    else:
        (system / "boot.json").write_text('{"org.nixos.nixos-init.v1":{"etc_metadata_image":"/nix/store/x"}}')
    assert options(runner) > overlay


def test_a_runner_that_cannot_be_read_is_taken_for_one_as_nixpkgs_makes_it() -> None:
    assert requirements.of_runner(Path("/gone/bin/run-nixos-vm")) == requirements.RUNNER


def test_a_modular_kernel_is_refused_with_what_mends_it(runner: Path, kernel: Kernel) -> None:
    configure(
        kernel, "".join(f"CONFIG_{name}=y\n" for name in options(runner) - {"EXT4_FS"}) + "CONFIG_EXT4_FS=m\n"
    )
    with pytest.raises(
        UsageError, match=r"cannot boot \.#base: these options are not built in: CONFIG_EXT4_FS=m\n"
    ) as caught:
        lacks.check_runner(kernel, runner, SCRIPT, ".#base")
    assert caught.value.hint.startswith("vmdebug kernel config --source ")
    assert " -f nixos-boot -o " in caught.value.hint
    assert "the root file system" in caught.value.detail


def test_one_with_all_built_in_is_not(runner: Path, kernel: Kernel) -> None:
    configure(kernel, "".join(f"CONFIG_{name}=y\n" for name in options(runner)))
    assert lacks.check_runner(kernel, runner, SCRIPT, ".#base") == ""


def test_where_nothing_tells_it_is_a_note(runner: Path, kernel: Kernel) -> None:
    assert kernel.vmlinux is not None
    (kernel.vmlinux.parent / ".config").unlink()
    assert lacks.check_runner(kernel, runner, SCRIPT, ".#base").startswith("it is unknown whether")


@pytest.mark.parametrize("need", requirements.all_(), ids=lambda need: f"{need.purpose}-{need.option}")
def test_the_fragment_that_mends_a_need_has_it(need: requirements.Need) -> None:
    has = dotconfig.options((shipped.kconfigs() / f"{need.add_fragment}.config").read_text())
    # DEBUG_INFO has no prompt; a choice sets it.
    asked = "DEBUG_INFO_DWARF5" if need.purpose == "debugging" else need.option
    assert has[f"CONFIG_{asked}"] == "y"


class TestOfAConfiguration:
    GOOD = "".join(f"CONFIG_{need.option}={'n' if need.off else 'y'}\n" for need in requirements.all_())

    @pytest.mark.parametrize(
        ("text", "check", "nixos"),
        [
            (GOOD, 0, 0),
            (GOOD.replace("EXT4_FS=y", "EXT4_FS=m"), 0, 1),
            (GOOD.replace("SERIAL_8250_CONSOLE=y", "SERIAL_8250_CONSOLE=n"), 1, 1),
            (GOOD.replace("DEBUG_INFO_REDUCED=n", "DEBUG_INFO_REDUCED=y"), 1, 1),
            (GOOD.replace("GDB_SCRIPTS=y", "GDB_SCRIPTS=n"), 0, 0),
        ],
    )
    def test_its_status(self, tmp_path: Path, text: str, check: int, nixos: int) -> None:
        (tmp_path / ".config").write_text(text)
        assert status_of(["kernel", "check", str(tmp_path / ".config")]) == check
        assert status_of(["kernel", "config", "--check", str(tmp_path)]) == nixos

    def test_a_lack_is_a_line_with_the_fragment_that_mends_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / ".config").write_text(self.GOOD.replace("OVERLAY_FS=y", "OVERLAY_FS=m"))
        status_of(["kernel", "config", "--check", str(tmp_path)])
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("CONFIG_"))
        assert line.split()[:3] == ["CONFIG_OVERLAY_FS", "m", "y"]
        assert line.endswith("-f nixos-boot")
