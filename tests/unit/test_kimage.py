import contextlib
import io
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import kernelfiles
from tests.unit.kernelfiles import BANNER, ID, NUMBER, OTHER_ID, PACKERS, RELEASE, VERSION
from vmdebug import filecache, kimage, process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, MismatchError, UsageError
from vmdebug.kimage import bzimage, symbols


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kernelfiles.vmlinux(tmp_path_factory.mktemp("kernel") / "vmlinux")


def test_a_vmlinux_tells_its_build_id_banner_and_dwarf(vmlinux: Path) -> None:
    found = kimage.read_vmlinux(vmlinux)
    assert found == kimage.Vmlinux(build_id=ID, banner=BANNER, arch="x86_64")
    assert found.release == RELEASE


@pytest.mark.parametrize("packer", PACKERS)
def test_an_image_tells_the_build_id_of_the_kernel_inside(tmp_path: Path, vmlinux: Path, packer: str) -> None:
    found = kimage.read_image(kernelfiles.image(tmp_path / "bzImage", vmlinux, packer=packer))
    assert found == kimage.Image(arch="x86_64", build_id=ID, banner=VERSION, compression=packer)
    assert found.release == RELEASE


@pytest.mark.parametrize("packer", PACKERS)
def test_the_kernel_inside_is_read_to_its_end(vmlinux: Path, packer: str) -> None:
    kernel = vmlinux.read_bytes() + bytes(3 << 20)
    stream = io.BytesIO(kernelfiles.bzimage(kernel, packer=packer))
    assert bzimage.FORMAT.unpack(stream).read() == kernel


def test_build_id_of_either(tmp_path: Path, vmlinux: Path) -> None:
    image = kernelfiles.image(tmp_path / "bzImage", vmlinux)
    assert kimage.build_id(image) == kimage.build_id(vmlinux) == ID


def test_no_more_is_unpacked_than_the_notes_need(vmlinux: Path) -> None:
    far = vmlinux.read_bytes() + bytes(64 << 20)
    stream = io.BytesIO(kernelfiles.bzimage(far))
    inside = bzimage.kernel(stream, bzimage.read_header(stream))
    inside.read(4096)
    assert len(inside._have) == 1 << 20


def test_xens_notes_before_the_build_id_are_passed_over(tmp_path: Path) -> None:
    # arch/x86/xen/xen-head.S: ELFNOTE(Xen, XEN_ELFNOTE_GUEST_OS, .asciz "linux"); ld puts it second.
    xen = struct.pack("<3I", 4, 6, 6) + b"Xen\0linux\0\0\0"
    source = tmp_path / "xen.s"
    source.write_text(f'.section .note.Xen,"a",@note\n.balign 4\n.byte {",".join(map(str, xen))}\n')
    path = kernelfiles.vmlinux(
        tmp_path / "vmlinux", options=("-z", "noexecstack", "-x", "assembler", str(source))
    )
    ours = struct.pack("<3I", 4, 20, 3) + b"GNU\0" + bytes.fromhex(ID)
    assert ours + xen in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(ours + xen, xen + ours))
    assert kimage.build_id(path) == ID


def test_the_banner_is_the_one_with_a_build_number(tmp_path: Path) -> None:
    # Since 6.1 the weak banner of init/version.c stays in the file: "… # SMP \n".
    unnumbered = BANNER.replace(NUMBER, "# SMP ")
    two = kernelfiles.vmlinux(tmp_path / "vmlinux", "", banner=f"{unnumbered}\\n\\0Linux version {BANNER}")
    assert kimage.read_vmlinux(two).banner == BANNER
    assert kimage.check(kernelfiles.image(tmp_path / "bzImage", two), two) == "banner"


def _symbols_alone(vmlinux: Path) -> Path:
    process.run(["objcopy", "--only-keep-debug", vmlinux], deadline=Deadline.after(60))
    return vmlinux


class TestCheck:
    def test_a_file_of_symbols_alone_is_known_by_its_build_id(self, tmp_path: Path, vmlinux: Path) -> None:
        image = kernelfiles.image(tmp_path / "bzImage", vmlinux)
        debug = _symbols_alone(kernelfiles.vmlinux(tmp_path / "vmlinux.debug"))
        assert kimage.read_vmlinux(debug).banner == ""
        assert kimage.check(image, debug) == "build-id"

    def test_one_build(self, tmp_path: Path, vmlinux: Path) -> None:
        assert kimage.check(kernelfiles.image(tmp_path / "bzImage", vmlinux), vmlinux) == "build-id"

    def test_two_builds_name_both_and_what_to_do(self, tmp_path: Path, vmlinux: Path) -> None:
        image = kernelfiles.image(tmp_path / "bzImage", vmlinux)
        other = kernelfiles.vmlinux(tmp_path / "vmlinux", OTHER_ID)
        with pytest.raises(MismatchError) as caught:
            kimage.check(image, other)
        for said in (str(image), str(other), ID, OTHER_ID):
            assert said in caught.value.message
        assert "make" in caught.value.hint
        assert "the kernel inside, gzip" in caught.value.detail

    def test_without_build_ids_the_banners_decide(self, tmp_path: Path) -> None:
        mute = kernelfiles.vmlinux(tmp_path / "vmlinux", "")
        image = kernelfiles.image(tmp_path / "bzImage", mute)
        assert kimage.check(image, mute) == "banner"
        later = kernelfiles.vmlinux(tmp_path / "later", "", banner=BANNER.replace("#1", "#2"))
        with pytest.raises(MismatchError, match=r"#1 SMP .* and .* #2 SMP"):
            kimage.check(image, later)

    def test_a_banner_of_another_shape_leaves_the_release(self, tmp_path: Path) -> None:
        mute = kernelfiles.vmlinux(tmp_path / "vmlinux", "", banner=f"{RELEASE} by hand")
        image = kernelfiles.image(tmp_path / "bzImage", mute)
        assert kimage.check(image, mute) == "release"

    def test_nothing_to_compare_is_said(self, tmp_path: Path, vmlinux: Path) -> None:
        mute = kernelfiles.vmlinux(tmp_path / "mute", "")
        assert kimage.check(kernelfiles.image(tmp_path / "bzImage", mute, version=""), vmlinux) == "none"

    def test_a_payload_that_cannot_be_unpacked_leaves_the_banner(self, tmp_path: Path, vmlinux: Path) -> None:
        image = tmp_path / "bzImage"
        image.write_bytes(kernelfiles.raw_bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(100)))
        assert kimage.read_image(image).unread == "lzo cannot be unpacked here"
        assert kimage.check(image, vmlinux) == "banner"


def _file(directory: Path, data: bytes) -> Path:
    path = directory / "file"
    path.write_bytes(data)
    return path


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"", "not a boot image"),
            (b"#!/bin/sh\n" + bytes(1000), "not a boot image"),
            (kernelfiles.raw_bzimage(b"")[:0x230], "cut off after 560 bytes"),
            (
                kernelfiles.raw_bzimage(bytes(9000))[:8000],
                "cut off after 8000 bytes: its payload ends at byte",
            ),
            (kernelfiles.raw_bzimage(b"\x1f\x8b\x08" + bytes(100)), "gzip payload is damaged"),
            (kernelfiles.raw_bzimage(b"\x02\x21\x4c\x18\xff\xff\xff\xff\0\0\0\0"), "lz4 payload is damaged"),
            (kernelfiles.bzimage(b"no ELF file at all"), "Magic number does not match"),
        ],
    )
    def test_no_image(self, tmp_path: Path, data: bytes, says: str) -> None:
        with pytest.raises(UsageError, match=says) as caught:
            kimage.read_image(_file(tmp_path, data))
        assert str(tmp_path / "file") in caught.value.message
        assert caught.value.hint

    def test_no_vmlinux(self, tmp_path: Path, vmlinux: Path) -> None:
        with pytest.raises(UsageError, match="not an ELF file"):
            kimage.read_vmlinux(_file(tmp_path, b"symbols"))
        with pytest.raises(UsageError, match="is damaged"):
            kimage.read_vmlinux(_file(tmp_path, vmlinux.read_bytes()[:200]))
        with pytest.raises(UsageError, match="not linked"):
            kimage.read_vmlinux(kernelfiles.vmlinux(tmp_path / "module.ko", options=("-r",)))
        with pytest.raises(UsageError, match="an ELF file without 'Linux version'"):
            kimage.read_vmlinux(kernelfiles.vmlinux(tmp_path / "hello", banner=""))
        with pytest.raises(UsageError, match="neither a build-id nor"):
            kimage.read_vmlinux(_symbols_alone(kernelfiles.vmlinux(tmp_path / "mute", "")))

    def test_another_machine(self, tmp_path: Path, vmlinux: Path) -> None:
        data = bytearray(vmlinux.read_bytes())
        struct.pack_into("<H", data, 18, 183)  # e_machine: EM_AARCH64
        with pytest.raises(UsageError, match="file: no support for EM_AARCH64"):
            kimage.read_vmlinux(_file(tmp_path, bytes(data)))

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for name, says in (
            ("pipe", "not a regular file"),
            (".", "not a regular file"),
            ("gone", "No such file"),
            ("a\0b", "null"),
            ("x" * 300, "too long"),
        ):
            with pytest.raises(UsageError, match=says):
                kimage.read_image(tmp_path / name)

    def test_what_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        path = _file(tmp_path, b"")
        monkeypatch.setattr(Path, "open", refuse)  # root can read everything
        with pytest.raises(HostError, match="may not be read"):
            kimage.read_image(path)


class TestCache:
    def test_an_unchanged_file_is_read_once(self, tmp_path: Path, vmlinux: Path) -> None:
        image = kernelfiles.image(tmp_path / "bzImage", vmlinux)
        first = kimage.read_image(image)
        entry = next(filecache.directory().glob("*.json"))
        entry.write_bytes(entry.read_bytes().replace(ID.encode(), OTHER_ID.encode()))
        assert first.build_id == ID
        assert kimage.read_image(image).build_id == OTHER_ID

    def test_a_changed_file_is_read_again_even_when_its_times_and_size_are_put_back(
        self, tmp_path: Path
    ) -> None:
        path = kernelfiles.vmlinux(tmp_path / "vmlinux", ID)
        seen = path.stat()
        assert kimage.build_id(path) == ID
        path.write_bytes(path.read_bytes().replace(bytes.fromhex(ID), bytes.fromhex(OTHER_ID)))
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        assert path.stat().st_size == seen.st_size
        assert kimage.build_id(path) == OTHER_ID

    def test_both_kinds_of_reading_are_kept_apart(self, tmp_path: Path, vmlinux: Path) -> None:
        kimage.read_vmlinux(vmlinux)
        with pytest.raises(UsageError):
            kimage.read_image(vmlinux)

    @pytest.mark.parametrize("broken", [b"", b"{", b'{"key": 1}', b"\xff\xff", b"[]"])
    def test_a_broken_entry_is_made_anew(self, vmlinux: Path, broken: bytes) -> None:
        kimage.read_vmlinux(vmlinux)
        entry = next(filecache.directory().glob("*.json"))
        entry.write_bytes(broken)
        assert kimage.build_id(vmlinux) == ID
        assert ID.encode() in entry.read_bytes()

    def test_no_cache_at_all_is_no_error(self, tmp_path: Path, vmlinux: Path) -> None:
        (tmp_path / "cache").write_text("a file, where a directory should be")
        assert kimage.build_id(vmlinux) == ID

    def test_nothing_is_left_beside_the_entry(self, vmlinux: Path) -> None:
        kimage.read_vmlinux(vmlinux)
        assert [path.suffix for path in filecache.directory().iterdir()] == [".json"]


_DAMAGE = st.lists(
    st.tuples(st.integers(0, 0x3FF) | st.integers(0, 1 << 15), st.binary(min_size=1, max_size=8)), max_size=6
)


def _damaged(data: bytes, damage: list[tuple[int, bytes]], keep: int | None) -> bytes:
    changed = bytearray(data)
    for at, new in damage:
        changed[at : at + len(new)] = new
    return bytes(changed[:keep])


@settings(max_examples=300)
@given(damage=_DAMAGE, keep=st.none() | st.integers(0, 1 << 15), packer=st.sampled_from(sorted(PACKERS)))
def test_a_damaged_image_never_surprises(
    vmlinux: Path, damage: list[tuple[int, bytes]], keep: int | None, packer: str
) -> None:
    data = _damaged(kernelfiles.bzimage(vmlinux.read_bytes(), packer=packer), damage, keep)
    _read_or_refuse(data, kimage.read_image)


@settings(max_examples=300)
@given(damage=_DAMAGE, keep=st.none() | st.integers(0, 1 << 15))
def test_a_damaged_vmlinux_never_surprises(
    vmlinux: Path, damage: list[tuple[int, bytes]], keep: int | None
) -> None:
    _read_or_refuse(_damaged(vmlinux.read_bytes(), damage, keep), kimage.read_vmlinux)


def _read_or_refuse(data: bytes, read: Callable[[Path], kimage.Image | kimage.Vmlinux]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        try:
            found = read(_file(Path(directory), data))
        except UsageError:
            return
        assert found.banner.isprintable()


@pytest.mark.parametrize("what", ["stack", "task"])
def test_the_size_of_a_kernel_stack_is_that_of_the_first_tasks(
    tmp_path: Path, vmlinux: Path, what: str
) -> None:
    """As with KASAN. The stack itself has no size in the symbol table."""
    assert symbols.thread_size(vmlinux) == 16 << 10
    larger = tmp_path / "vmlinux"
    places = {f"__start_init_{what}": 0, "init_stack": 0, f"__end_init_{what}": 32 << 10}
    added = [f"--add-symbol={name}=.text:{place:#x},global" for name, place in places.items()]
    kernelfiles.objcopy(*added, vmlinux, larger)
    assert symbols.thread_size(larger) == 32 << 10


@settings(max_examples=300)
@given(damage=_DAMAGE, keep=st.none() | st.integers(0, 1 << 15))
def test_the_symbols_of_a_damaged_vmlinux_never_surprise(
    vmlinux: Path, damage: list[tuple[int, bytes]], keep: int | None
) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(UsageError):
        path = _file(Path(directory), _damaged(vmlinux.read_bytes(), damage, keep))
        assert all(address > 0 for address in symbols.addresses(path, "linux_banner"))
