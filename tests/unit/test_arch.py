"""A second architecture needs only a row and an image reader: a made-up one works with the real code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import msgspec
import pytest

from tests.unit import kernelfiles
from tests.unit.kernelfiles import ID, RELEASE, VERSION
from vmdebug import arch, guest, kernel_parameters, kimage
from vmdebug.deadline import Deadline
from vmdebug.debugger import interactive
from vmdebug.debugger.identity import Identity, Wanted
from vmdebug.errors import HostError, UsageError
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.kimage import elf
from vmdebug.kimage import image as images
from vmdebug.kimage.formats import Format, Image
from vmdebug.kimage.packed import unpack
from vmdebug.progress import silent
from vmdebug.sources import kernel_source, naming, own
from vmdebug.sources.kernels import image, tree
from vmdebug.vm import planning
from vmdebug.vm.argv import InitialState
from vmdebug.vm.rundir import RunDir

TOY = msgspec.structs.replace(
    arch.by_name("x86_64"),
    name="toy64",
    elf_machine="EM_RISCV",
    qemu="qemu-system-toy64",
    qemu_package="qemu-system-toys",
    machine="playground",
    ram_id="toy.ram",
    cpu="brick",
    cpu_per_socket=False,
    kvm_flags=(),
    kvm_modules=(),
    source="arch/toy",
    image="arch/toy/boot/Toy",
    image_target="Toy",
    image_format="Toy",
    fragment="toy",
    console="ttyTOY0",
    console_device=(204, 64),
    early_console="earlycon",
    parameters=("toys=quiet",),
    debug=msgspec.structs.replace(
        arch.by_name("x86_64").debug,
        name="toy64",
        first_symbols=("toy_start_kernel", "start_kernel"),
        identity_mapped=("toy_head",),
        hardware_breakpoints=1,
        kernel_map="0x1000000",
        kaslr_places=7,
    ),
)

MAGIC = b"TOYS"

# A fake QEMU that only lists its features.
QEMU = "#!/bin/sh\ncase $1 in -help) echo 'QEMU emulator version 7.2.22' ;; esac\n"


def read(path: Path, stream: IO[bytes]) -> Image:
    stream.seek(len(MAGIC))
    file = elf.parse(path, unpack(stream.read()))
    return Image(build_id=elf.build_id(file), banner=VERSION, arch=elf.arch_of(path, file["e_machine"]))


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up row and reader, beside the real ones."""
    rows = (*arch.rows(), TOY)
    reader = Format(
        name="Toy", missing="it does not begin with TOYS", recognises=lambda start: start.startswith(MAGIC),
        read=read, unpack=lambda stream: unpack(stream.read()[len(MAGIC) :]),
    )  # fmt: skip
    monkeypatch.setattr(arch, "rows", lambda: rows)
    monkeypatch.setitem(images.FORMATS, "Toy", reader)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A build tree of the made-up architecture: the vmlinux of a real one with another e_machine."""
    vmlinux = kernelfiles.vmlinux(tmp_path / "linux/vmlinux")
    with vmlinux.open("r+b") as file:
        file.seek(18)  # e_machine, see elf(5)
        file.write((243).to_bytes(2, "little"))
    boot = tmp_path / "linux" / TOY.image
    boot.parent.mkdir(parents=True)
    boot.write_bytes(MAGIC + vmlinux.read_bytes())
    return tmp_path / "linux"


@pytest.fixture
def qemu(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin/qemu-system-toy64"
    path.parent.mkdir()
    path.write_text(QEMU)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


def resolve(source: Path, **options: object) -> LaunchSpec:
    wanted = guest.decode(guest.encode({"source": str(source), **options}), GuestOptions)
    return own.resolve(naming.parse(wanted.source), wanted, report=silent, deadline=Deadline.after(60))


def test_a_tree_is_told_by_its_vmlinux(linux: Path) -> None:
    spec = resolve(linux, append="loglevel=7")
    assert spec.kernel == Kernel(
        image=linux / "arch/toy/boot/Toy",
        origin=f"the tree {linux}",
        arch="toy64",
        build_id=ID,
        release=RELEASE,
        vmlinux=linux / "vmlinux",
        modules=linux,
        source=linux,
    )
    assert spec.parameters == (
        f"console=ttyTOY0,{kernel_parameters.BAUD}",
        "nokaslr",
        "nowatchdog",
        "rcupdate.rcu_cpu_stall_suppress=1",
        "toys=quiet",
        "loglevel=7",
    )


def test_an_image_is_told_by_the_kernel_inside_it(linux: Path) -> None:
    found = image.kernel(linux / TOY.image)
    assert (found.arch, found.build_id, found.vmlinux) == ("toy64", ID, linux / "vmlinux")


def test_its_command_line(linux: Path, qemu: Path) -> None:
    found = planning.plan(resolve(linux, cpus=3), timeout=20)
    words = found.argv
    assert words[0] == str(qemu)
    assert words[words.index("-machine") + 1] == "playground,accel=tcg"
    assert words[words.index("-cpu") + 1] == "brick"
    assert words[words.index("-smp") + 1] == "3"
    assert words[words.index("-kernel") + 1] == str(linux / "arch/toy/boot/Toy")
    assert "console=ttyTOY0" in words[words.index("-append") + 1]
    assert found.reason == f"no KVM: the guest's kernel is toy64, and this host is {os.uname().machine}"


def test_the_ram_of_a_saved_state_has_its_name(linux: Path, qemu: Path, runtime: Path) -> None:
    spec = resolve(linux, accel="tcg")
    found = planning.resources(spec, report=silent, deadline=Deadline.after(20))
    words = planning.build(spec, found, RunDir(runtime / "vm"), initial=InitialState(ram=9)).argv
    assert "memory-backend=toy.ram" in words


def test_kvm_is_refused(linux: Path, qemu: Path) -> None:
    with pytest.raises(HostError, match="the guest's kernel is toy64") as caught:
        planning.plan(resolve(linux, accel="kvm"), timeout=20)
    assert 'accel="tcg"' in caught.value.hint


def test_an_emulator_that_is_not_there(linux: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve(linux)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="qemu-system-toy64") as caught:
        planning.plan(spec, timeout=20)
    assert "apt install qemu-system-toys" in caught.value.hint


def test_gdb_gets_the_row(linux: Path) -> None:
    words = interactive.argv(interactive.Attachment(endpoint="/gdb", kernel=resolve(linux).kernel))
    handed = next(word for word in words if "vmd_preload.start" in word)
    assert repr(arch.for_gdb(TOY)) in handed


def test_a_breakpoint_that_is_never_hit(linux: Path) -> None:
    asked = Identity(lambda _command, _timeout: {}, warn=lambda _text: None)
    asked.begin(Wanted(kernel=resolve(linux).kernel))
    entry = {"func": "toy_head", "addr": "0x1000040"}
    error = asked.never_hit(entry, "toy_head")
    assert error is not None
    assert "toy_start_kernel" in error.hint
    assert "0x40" in error.hint


def test_a_tree_that_is_not_built(linux: Path) -> None:
    (linux / TOY.image).unlink()
    with pytest.raises(UsageError, match=r"no boot image in .*: wanted .*/arch/toy/boot/Toy"):
        tree.kernel(linux)


def test_what_is_no_image_names_every_format(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(9000))
    with pytest.raises(UsageError, match="'HdrS' is not at 0x202; it does not begin with TOYS") as caught:
        kimage.read_image(tmp_path / "file")
    assert "arch/toy/boot/Toy" in caught.value.hint


def test_an_unknown_machine_is_told_all_rows() -> None:
    with pytest.raises(UsageError, match="no support for EM_VAX kernels") as caught:
        arch.by_elf_machine("EM_VAX")
    assert caught.value.hint == "supported: x86_64, toy64"


def test_a_source_that_was_built_in(tmp_path: Path) -> None:
    for mark in ("Kconfig", "Makefile", "scripts/kconfig/merge_config.sh", "arch/toy/include/generated/x.h"):
        (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mark).touch()
    with pytest.raises(UsageError, match="it has arch/toy/include/generated"):
        kernel_source.look(tmp_path)


def test_each_shipped_row_names_a_format_that_can_be_read() -> None:
    assert {row.image_format for row in arch.rows()} <= images.FORMATS.keys()


def test_no_row_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arch, "rows", lambda: (TOY,))
    with pytest.raises(HostError, match=r"no support for .* kernels") as caught:
        arch.native()
    assert caught.value.hint == "supported: toy64"
