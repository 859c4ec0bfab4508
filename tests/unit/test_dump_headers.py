"""What is added to QEMU's dumps, and their usual form."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.unit import kernelfiles
from vmdebug.guest import Kernel
from vmdebug.vm import dump_headers

BLOCK = 4096
INFO = b"OSRELEASE=6.1.0\nNUMBER(phys_base)=-16777216\nKERNELOFFSET=1c000000\n"
NOTE = struct.pack("<III", 5, 4, 1) + b"CORE\0\0\0\0" + b"regs"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vmlinux = kernelfiles.vmlinux(tmp_path / "vmlinux")
    return Kernel(arch="x86_64", image=vmlinux, origin="a test", release="6.1.0", vmlinux=vmlinux)


def kdump(info: bytes = b"", name: bytes = b"") -> bytes:
    """Return the beginning of a compressed dump, as QEMU writes it."""
    header = (b"KDUMP   " + struct.pack("<I", 6) + name.ljust(390, b"\0") + bytes(26)).ljust(428, b"\0")
    header += struct.pack("<I", BLOCK)
    at = 3 * BLOCK if info else 0
    sub = struct.pack("<QIIQQQQQQ", 0, 1, 0, 0, 0, at, len(info), 2 * BLOCK, len(NOTE))
    whole = header.ljust(BLOCK, b"\0") + sub.ljust(BLOCK, b"\0") + NOTE.ljust(BLOCK, b"\0")
    return whole + info


def elf(info: bytes = b"") -> bytes:
    """Return the beginning of an ELF dump: the header, then sections, as QEMU 7.2 does, then the notes."""
    notes = NOTE
    if info:
        notes += struct.pack("<III", 11, len(info), 0) + b"VMCOREINFO\0\0" + info
    header = bytearray(192)
    header[:4] = b"\x7fELF"
    header[32:40] = struct.pack("<Q", 192)
    header[56:58] = struct.pack("<H", 2)
    at = 192 + 2 * 56
    phdrs = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 0)
    phdrs += struct.pack("<IIQQQQQQ", 1, 0, at + len(notes), 0, 0, 6, 6, 0)
    return bytes(header) + phdrs + notes + b"memory"


def complete(path: Path, data: bytes, kernel: Kernel, info: bytes = INFO) -> tuple[bytes, int | None]:
    path.write_bytes(data)
    slide = dump_headers.complete(path, kernel, lambda: info)
    return path.read_bytes(), slide


def names(data: bytes) -> list[str]:
    return [data[12 + 65 * each : 77 + 65 * each].rstrip(b"\0").decode() for each in range(6)]


def sub_header(data: bytes) -> tuple[int, ...]:
    return struct.unpack_from("<QIIQQQQQQ", data, BLOCK)


def test_a_compressed_dump_gets_the_name_of_its_kernel_and_vmcoreinfo(tmp_path: Path, kernel: Kernel) -> None:
    data, slide = complete(tmp_path / "dump", kdump(), kernel)
    system, _, release, version, machine, _ = names(data)
    assert (system, release, machine) == ("Linux", "6.1.0", "x86_64")
    assert version.startswith("#")
    fields = sub_header(data)
    assert data[fields[5] : fields[5] + fields[6]] == INFO
    assert fields[0] == (1 << 64) - 16777216
    assert slide == 0x1C000000
    notes = data[fields[7] : fields[7] + fields[8]]
    assert notes.startswith(NOTE)
    assert b"VMCOREINFO\0\0" + INFO in notes


def test_what_a_compressed_dump_has_stays(tmp_path: Path, kernel: Kernel) -> None:
    before = kdump(INFO, b"Linux")
    after, slide = complete(tmp_path / "dump", before, kernel, b"KERNELOFFSET=0\n")
    assert after == before
    assert slide == 0x1C000000


def test_an_elf_dump_gets_a_note_with_vmcoreinfo(tmp_path: Path, kernel: Kernel) -> None:
    before = elf()
    after, slide = complete(tmp_path / "dump", before, kernel)
    assert slide == 0x1C000000
    _, _, at, _, _, size, in_memory, _ = struct.unpack_from("<IIQQQQQQ", after, 192)
    assert size == in_memory
    assert at == 192 + 2 * 56
    assert after[at : at + size].startswith(NOTE)
    assert INFO in after[at : at + size]
    _, _, memory, *_ = struct.unpack_from("<IIQQQQQQ", after, 192 + 56)
    assert memory == at + size
    assert after[memory:] == b"memory"
    assert [each.name for each in tmp_path.glob("dump*")] == ["dump"]
    again, slide = complete(tmp_path / "dump", after, kernel, b"KERNELOFFSET=0\n")
    assert (again, slide) == (after, 0x1C000000)


def test_what_an_elf_dump_has_stays(tmp_path: Path, kernel: Kernel) -> None:
    before = elf(INFO)
    assert complete(tmp_path / "dump", before, kernel, b"") == (before, 0x1C000000)


def test_a_dump_without_vmcoreinfo_and_without_a_kernel_that_has_any(tmp_path: Path, kernel: Kernel) -> None:
    for data in (kdump(name=b"Linux"), elf()):
        assert complete(tmp_path / "dump", data, kernel, b"") == (data, None)


def flattened(*records: tuple[int, bytes]) -> bytes:
    head = b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)
    body = b"".join(struct.pack(">qq", at, len(data)) + data for at, data in records)
    return head.ljust(4096, b"\0") + body + struct.pack(">qq", -1, -1)


def test_a_flattened_dump_gets_its_usual_form(tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    packed.write_bytes(flattened((0, b"KDUMP"), (10, b"data"), (5, b"12345"), (20, os.urandom(1 << 21))))
    assert dump_headers.is_flattened(packed)
    dump_headers.unflatten(packed, plain)
    assert plain.read_bytes()[:20] == b"KDUMP12345data" + bytes(6)
    assert plain.stat().st_size == 20 + (1 << 21)
    assert not dump_headers.is_flattened(plain)
    assert plain.stat().st_mode & 0o777 == 0o600


def test_a_flattened_dump_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(flattened((0, b"KDUMP" * 100))[:4200])
    with pytest.raises(OSError, match="ends too early"):
        dump_headers.unflatten(tmp_path / "packed", tmp_path / "plain")
