from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.unit import kernelfiles
from tests.unit.kernelfiles import ID
from vmdebug import guest, kernel_parameters, network, process
from vmdebug.arch import by_name
from vmdebug.compiler import GuestProgram
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError
from vmdebug.guest import LaunchSpec, OwnMachine, Root, Share
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.sources import builtin, firmware, initramfs, naming, own
from vmdebug.sources.configuration import requirements
from vmdebug.sources.kernels import image, tree

INITRD = Path("/cache/initramfs.cpio")
AGENT = Path("/cache/vmdebug-agent")


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "_ROOT", tmp_path / "root")


@pytest.fixture
def mounted() -> list[Root | None]:
    """The root file system that each initramfs mounts."""
    return []


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch, mounted: list[Root | None]) -> list[Path | None]:
    """The archive of modules in each initramfs."""
    asked: list[Path | None] = []

    def build(
        *,
        modules: Path | None = None,
        agent: Path | None = None,
        agent_tty: str = "",
        root: Root | None = None,
        shares: Sequence[Share] = (),
        deadline: Deadline,
    ) -> Path:
        mounted.append(root)
        assert (agent, agent_tty) == (AGENT, "ttyS3")
        asked.append(modules)
        return INITRD

    monkeypatch.setattr(initramfs, "build", build)
    monkeypatch.setattr(GuestProgram, "find", lambda *_args, **_named: AGENT)
    return asked


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    return kernelfiles.tree(tmp_path / "linux")


def resolve(source: Path | str, **options: object) -> LaunchSpec:
    wanted = guest.decode(guest.encode({"source": str(source), **options}), GuestOptions)
    return own.resolve(naming.parse(wanted.source), wanted, report=silent, deadline=Deadline.after(10))


def test_a_tree_with_nothing_said(linux: Path) -> None:
    assert resolve(linux) == LaunchSpec(
        name="linux",
        guest=str(linux),
        machine=OwnMachine(initrd=INITRD),
        kernel=tree.kernel(linux),
        parameters=kernel_parameters.parameters(by_name("x86_64"), kaslr=False, append=""),
        memory=512,
        cpus=1,
    )


def test_everything_said_is_handed_on(linux: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"")
    spec = resolve(
        linux, table="fast", halt=True, append="loglevel=7", kaslr=True, accel="tcg", memory=256, cpus=4,
        disk=str(tmp_path / "disk.img"), tcp=0, qemu_args=["-device", "edu"],
    )  # fmt: skip
    assert spec == LaunchSpec(
        name="fast",
        guest="fast",
        machine=OwnMachine(initrd=INITRD, disk=tmp_path / "disk.img"),
        kernel=tree.kernel(linux),
        parameters=kernel_parameters.parameters(by_name("x86_64"), kaslr=True, append="loglevel=7"),
        halt=True,
        accel="tcg",
        memory=256,
        cpus=4,
        tcp=0,
        qemu_args=("-device", "edu"),
    )


def test_an_image_with_its_symbols_by_name(linux: Path) -> None:
    bzimage = kernelfiles.image(linux.parent / "bzImage", linux / "vmlinux")
    spec = resolve(bzimage, vmlinux=str(linux / "vmlinux"))
    assert (spec.name, spec.kernel.image, spec.kernel.vmlinux) == ("bzImage", bzimage, linux / "vmlinux")
    assert spec.notes == ()


def test_an_image_without_symbols_boots_all_the_same(linux: Path) -> None:
    spec = resolve(kernelfiles.image(linux.parent / "bzImage", linux / "vmlinux"))
    assert spec.kernel.vmlinux is None
    assert spec.notes[0].startswith("no symbols")


class TestBuiltin:
    def test_its_modules_are_in_its_initramfs(
        self, linux: Path, monkeypatch: pytest.MonkeyPatch, modules: list[Path | None]
    ) -> None:
        monkeypatch.setattr(builtin, "kernel", lambda *, force: tree.kernel(linux, force=force))
        kernelfiles.module(linux / "drivers/block/brd.ko")
        (linux / "modules.order").write_text("drivers/block/brd.ko\n")
        assert resolve("builtin").name == "builtin"
        (archive,) = modules
        assert archive is not None
        module = f"lib/modules/{kernelfiles.RELEASE}/kernel/drivers/block/brd.ko"
        assert module.encode() in archive.read_bytes()

    def test_another_kernel_makes_its_own_needless(self, linux: Path, modules: list[Path | None]) -> None:
        with pytest.raises(HostError, match="not built"):
            resolve("builtin")
        assert resolve("builtin", kernel=str(linux)).kernel == tree.kernel(linux)
        assert modules == [None]


def test_a_disk_that_is_not_there(linux: Path, tmp_path: Path) -> None:
    for disk in (tmp_path / "gone", tmp_path, "a\0b"):
        with pytest.raises(UsageError, match="no disk image") as caught:
            resolve(linux, disk=str(disk))
        assert "qemu-img create" in caught.value.hint


class TestUnifiedKernelImage:
    @pytest.fixture
    def parts(self, linux: Path) -> dict[str, bytes]:
        kernel = kernelfiles.bzimage((linux / "vmlinux").read_bytes())
        return {"linux": kernel, "initrd": b"cpio", "cmdline": b"root=/dev/vda quiet\n\0"}

    def test_its_parts_are_used_and_named(self, tmp_path: Path, linux: Path, parts: dict[str, bytes]) -> None:
        whole = tmp_path / "linux.efi"
        whole.write_bytes(kernelfiles.uki(osrel=b"ID=test", **parts))
        spec = resolve(whole, vmlinux=str(linux / "vmlinux"), append="debug")
        assert spec.kernel.image.read_bytes() == parts["linux"]
        assert (spec.kernel.build_id, spec.kernel.origin) == (ID, f"the unified kernel image {whole}")
        assert isinstance(spec.machine, OwnMachine)
        assert spec.machine.initrd is not None
        assert spec.machine.initrd.read_bytes() == b"cpio"
        assert spec.parameters[:3] == ("root=/dev/vda", "quiet", "console=ttyS0,115200")
        assert spec.parameters[-1] == "debug"
        (note,) = spec.notes
        assert "its .linux, its .initrd (0.0 MiB), its .cmdline (root=/dev/vda quiet)" in note
        assert note.endswith('; firmware="uefi" starts it as it is')

    def test_a_firmware_starts_it_as_it_is(
        self, tmp_path: Path, linux: Path, parts: dict[str, bytes]
    ) -> None:
        whole, ovmf = tmp_path / "linux.efi", tmp_path / "OVMF.fd"
        whole.write_bytes(kernelfiles.uki(**parts))
        ovmf.touch()
        spec = resolve(whole, vmlinux=str(linux / "vmlinux"), firmware=str(ovmf))
        assert spec.machine == OwnMachine(firmware=ovmf, unified=whole, own_init=False)
        assert spec.kernel.image.read_bytes() == parts["linux"]
        assert spec.parameters[:3] == ("root=/dev/vda", "quiet", "console=ttyS0,115200")
        (note,) = spec.notes
        assert "UEFI starts it as it is, by its own EFI stub, with its .cmdline (root=/dev/vda quiet)" in note
        whole.write_bytes(kernelfiles.uki(linux=parts["linux"]))
        apart = resolve(whole, vmlinux=str(linux / "vmlinux"), firmware=str(ovmf))
        assert apart.machine == OwnMachine(initrd=INITRD, firmware=ovmf)
        assert "it has no .initrd, so vmdebug's is used" in apart.notes[0]

    def test_without_an_initramfs_it_gets_ours(self, tmp_path: Path, parts: dict[str, bytes]) -> None:
        (tmp_path / "linux.efi").write_bytes(kernelfiles.uki(linux=parts["linux"]))
        spec = resolve(tmp_path / "linux.efi")
        assert spec.machine == OwnMachine(initrd=INITRD)
        assert "it has no .initrd, so vmdebug's is used" in spec.notes[0]

    def test_its_kernel_alone(self, tmp_path: Path, linux: Path, parts: dict[str, bytes]) -> None:
        (tmp_path / "linux.efi").write_bytes(kernelfiles.uki(**parts))
        spec = resolve(linux, kernel=str(tmp_path / "linux.efi"), vmlinux=str(linux / "vmlinux"))
        assert spec.kernel.image.read_bytes() == parts["linux"]
        assert spec.machine == OwnMachine(initrd=INITRD)

    def test_one_that_is_cut_off(self, tmp_path: Path, parts: dict[str, bytes]) -> None:
        (tmp_path / "linux.efi").write_bytes(kernelfiles.uki(**parts)[:5000])
        with pytest.raises(UsageError, match="unified kernel image cut off"):
            resolve(tmp_path / "linux.efi")

    def test_other_programs_of_efi(self, tmp_path: Path) -> None:
        (tmp_path / "grubx64.efi").write_bytes(kernelfiles.uki(text=b"code"))
        with pytest.raises(UsageError, match="is not a guest") as caught:
            resolve(tmp_path / "grubx64.efi")
        assert "no PE file with a .linux section" in caught.value.detail


def test_a_firmware(linux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no file") as caught:
        resolve(linux, firmware=str(tmp_path / "OVMF.fd"))
    assert "uefi" in caught.value.hint
    (tmp_path / "OVMF.fd").touch()
    assert resolve(linux, firmware=str(tmp_path / "OVMF.fd")).machine == OwnMachine(
        initrd=INITRD, firmware=tmp_path / "OVMF.fd"
    )
    (tmp_path / "bin").mkdir()
    qemu = tmp_path / "bin/qemu-system-x86_64"
    row = msgspec.structs.replace(by_name("x86_64"), uefi=(str(tmp_path / "gone"),))
    monkeypatch.setattr(process, "find", lambda *_args, **_named: qemu)
    with pytest.raises(HostError, match="no UEFI firmware for x86_64") as lacking:
        firmware.find(row, GuestOptions(firmware="uefi"))
    assert "apt install ovmf" in lacking.value.hint
    beside = tmp_path / row.uefi_beside_qemu
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert firmware.find(row, GuestOptions(firmware="uefi")) == beside


def test_a_console_that_vmdebug_does_not_read(linux: Path) -> None:
    (note,) = resolve(linux, append="console=tty0").notes
    assert note.startswith("console=tty0 is the last console=: the guest's programs write to tty0")
    assert "add console=ttyS0 after it" in note
    assert resolve(linux, append="console=tty0 console=ttyS0,9600").notes == ()


def test_nixs_options_are_not_passed_over_in_silence(linux: Path) -> None:
    assert any("nix" in note for note in resolve(linux, nix_args=["--impure"]).notes)


def lz4(path: Path) -> Path:
    path.write_bytes(b"\x02\x21\x4c\x18 packed")
    return path


def test_an_initramfs_of_the_user_replaces_ours(linux: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        resolve(linux, initrd=str(tmp_path / "initrd.img"))
    (tmp_path / "initrd.img").write_bytes(b"\x53\xef")
    with pytest.raises(UsageError, match=r"initrd\.img is not an initramfs"):
        resolve(linux, initrd=str(tmp_path / "initrd.img"))
    (tmp_path / "initrd.img").write_bytes(b"070701")
    (linux / ".config").write_text("CONFIG_BLK_DEV_INITRD=y\n")
    spec = resolve(linux, initrd=str(tmp_path / "initrd.img"), append="root=/dev/vda1")
    assert spec.machine == OwnMachine(initrd=tmp_path / "initrd.img", own_init=False)
    assert spec.notes[0].startswith(f"the initramfs is {tmp_path}/initrd.img: exec works if")
    assert not any("has no effect" in note for note in spec.notes)


def test_a_kernel_that_cannot_unpack_the_initramfs(linux: Path, tmp_path: Path) -> None:
    (linux / ".config").write_text("CONFIG_BLK_DEV_INITRD=y\n")
    file = lz4(tmp_path / "initrd.img")
    with pytest.raises(UsageError, match=r"cannot boot .* not built in: CONFIG_RD_LZ4=n") as caught:
        resolve(linux, initrd=str(file))
    assert "starts it anyway" in caught.value.detail
    assert resolve(linux, initrd=str(file), force=True).machine == OwnMachine(initrd=file, own_init=False)


def test_a_root_that_nobody_mounts_is_said(linux: Path) -> None:
    (note,) = resolve(linux, append="root=/dev/vda1 quiet").notes
    assert note.startswith("root=/dev/vda1 has no effect")
    (note,) = resolve(linux, qemu_args=["-initrd", "/i"], append="root=/dev/vda1").notes
    assert note.startswith("the QEMU argument -initrd replaces vmdebug's initramfs")


NETWORK = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_INET=y\n"


def test_a_kernel_without_a_network_card_is_refused(linux: Path) -> None:
    (linux / ".config").write_text(NETWORK)
    with pytest.raises(
        UsageError, match=r"cannot boot .* with net=\"user\": .* CONFIG_VIRTIO_NET=n"
    ) as caught:
        resolve(linux, net=["user"])
    assert "-f net " in caught.value.hint
    with pytest.raises(UsageError, match=r"with forward=\"80:80\": "):
        resolve(linux, forward=["80:80"])
    assert resolve(linux, net=["user"], force=True).nics == network.parse(["user"], [])
    (linux / ".config").write_text(f"{NETWORK}CONFIG_VIRTIO_NET=y\n")
    spec = resolve(linux, net=["user", "segment=lab"], forward=["80:80"])
    assert spec.nics == network.parse(["user", "segment=lab"], ["80:80"])
    assert not any("unknown" in note for note in spec.notes)
    with pytest.raises(UsageError, match="CONFIG_PACKET=n"):
        resolve(linux, net=["bridge=br0"])


def test_without_our_init_the_kernel_configures_the_network_card(linux: Path, tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(b"070701")
    (linux / ".config").write_text("CONFIG_BLK_DEV_INITRD=y\nCONFIG_IP_PNP=y\n")
    (note,) = resolve(linux, net=["user"], initrd=str(tmp_path / "i")).notes
    assert "IP_PNP" not in note
    (linux / ".config").write_text("CONFIG_BLK_DEV_INITRD=y\n")
    notes = resolve(linux, net=["user"], initrd=str(tmp_path / "i")).notes
    assert "ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2" in notes[1]
    spec = resolve(linux, net=["user"], qemu_args=["-initrd", "/i"])
    assert isinstance(spec.machine, OwnMachine)
    assert not spec.machine.own_init


@pytest.fixture
def chroot(tmp_path: Path) -> Path:
    top = tmp_path / "chroot"
    (top / "lib/systemd").mkdir(parents=True)
    (top / "sbin").mkdir()
    (top / "lib/systemd/systemd").touch()
    (top / "sbin/init").symlink_to("/lib/systemd/systemd")
    return top


def config_of(tree: Path, *missing: str) -> None:
    root = Root(words="", location=Path("/"), file_system="9p", systemd=True)
    names = {need.option for need in (*requirements.of_root(root), *requirements.own(by_name("x86_64")))}
    (tree / ".config").write_text("".join(f"CONFIG_{name}=y\n" for name in sorted(names - {*missing})))


def test_a_root_is_mounted_by_our_initramfs(linux: Path, chroot: Path, mounted: list[Root | None]) -> None:
    config_of(linux)
    spec = resolve(linux, root=str(chroot))
    assert spec.root is not None
    assert (spec.root.location, spec.root.file_system, spec.root.systemd) == (chroot, "9p", True)
    assert mounted == [spec.root]
    assert {"systemd.mask=serial-getty@ttyS0.service", "fstab=no"} <= {*spec.parameters}
    assert spec.notes == ()


def test_the_host_s_root_has_a_shell_only(linux: Path) -> None:
    config_of(linux)
    spec = resolve(linux, root="host")
    assert spec.root is not None
    assert (spec.root.location, spec.root.init) == (Path("/"), "none")
    assert "fstab=no" not in spec.parameters


def test_what_the_kernel_lacks_for_a_root_is_named(linux: Path, chroot: Path) -> None:
    config_of(linux, "OVERLAY_FS", "CGROUPS")
    with pytest.raises(UsageError, match="OVERLAY_FS=n, CONFIG_CGROUPS=n") as caught:
        resolve(linux, root=str(chroot))
    assert "-f root" in caught.value.hint
    assert "a layer for the guest's writes (fragment root)" in caught.value.detail
    assert resolve(linux, root=str(chroot), force=True).root is not None
    (linux / ".config").unlink()
    assert resolve(linux, root=str(chroot)).notes[0].startswith("it is unknown whether")


def test_shared_directories_are_mounted_by_our_initramfs(linux: Path, chroot: Path) -> None:
    (linux / ".config").write_text("CONFIG_VIRTIO_PCI=y\nCONFIG_9P_FS=y\nCONFIG_NET_9P_VIRTIO=y\n")
    spec = resolve(linux, share=[f"{chroot}:/mnt:rw"])
    (share,) = spec.shares
    assert (share.directory, share.mount_point, share.mode, share.transport) == (chroot, "/mnt", "rw", "9p")
    said, lost = spec.notes[-2:]
    assert said == f"{chroot} at /mnt over 9p: the guest writes to it"
    assert lost.startswith(
        "with them the guest cannot be saved or cloned while they are mounted; `vmdebug cp`"
    )
    with pytest.raises(
        UsageError, match=r"with share=.*: these options are not built in: CONFIG_OVERLAY_FS=n"
    ):
        resolve(linux, share=[f"{chroot}:/mnt:overlay"])
    (linux / "initrd").write_bytes(b"070701")
    found = resolve(linux, share=[f"{chroot}:/mnt"], initrd=str(linux / "initrd"), force=True)
    assert any("mount -t 9p -o trans=virtio vmdebug-share0 /mnt" in note for note in found.notes)


def test_a_root_and_an_initramfs_exclude_each_other(linux: Path, chroot: Path) -> None:
    with pytest.raises(UsageError, match="needs vmdebug's initramfs"):
        resolve(linux, root=str(chroot), initrd="/i")


def test_a_kernel_that_cannot_reach_the_shell_is_told_before_it_boots(linux: Path, tmp_path: Path) -> None:
    kept = (linux / ".config").read_text().replace("CONFIG_SERIAL_8250_CONSOLE=y\n", "")
    (linux / ".config").write_text(kept)
    (note,) = resolve(linux).notes
    assert note.startswith(
        "warning: this kernel will not reach its shell: CONFIG_SERIAL_8250_CONSOLE=n (the console)"
    )
    assert "-f vm-boot" in note
    (tmp_path / "initrd.img").write_bytes(b"070701")
    assert not any("shell:" in note for note in resolve(linux, initrd=str(tmp_path / "initrd.img")).notes)
