"""The kernel's address by QEMU's monitor: KASLR's slide, and a kernel of another build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit import kernelfiles
from vmdebug import arch
from vmdebug.errors import MismatchError, QmpError, StateError
from vmdebug.vm import kernel_address

X86_64 = arch.by_name("x86_64")
LINKED = 0xFFFFFFFF81800000
EARLY = 0xFFFFFFFF83000120
BANNER = 0xFFFFFFFF81C00000
TABLE = 0xFFFFFE0000000000


@pytest.fixture
def vmlinux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    where = {
        X86_64.debug.first_vector: (LINKED,),
        X86_64.debug.early_vector: (EARLY,),
        "linux_banner": (BANNER,),
    }
    monkeypatch.setattr("vmdebug.kimage.symbols.addresses", lambda _, name: where[name])
    return kernelfiles.vmlinux(tmp_path / "vmlinux")


def monitor(handler: int, memory: bytes = b"", *, at: int = 0, table: int = TABLE) -> Callable[..., object]:
    """Return QEMU's monitor, as 7.2 answers."""
    gate = handler.to_bytes(8, "little")
    entry = gate[:2] + b"\x10\0\0\x8e" + gate[2:4] + gate[4:8] + bytes(4)
    parts = {table: entry, at: memory}

    def qmp(command: str, **arguments: str) -> object:
        if command == "query-cpus-fast":
            return [{"cpu-index": 0}]
        assert command == "human-monitor-command"
        line = arguments["command-line"]
        if line == "info registers":
            return f"RAX=0000\nGDT=     {1:016x} 0000007f\nIDT=     {table:016x} 00000fff\n"
        _, count, place = line.split()
        data = parts.get(int(place, 16), b"")[: int(count.strip("/xb"))]
        if not data:
            raise QmpError("Cannot access memory")
        return "\n".join(
            f"{place[2:]}: " + " ".join(f"0x{each:02x}" for each in data[at : at + 8])
            for at in range(0, len(data), 8)
        )

    return qmp


def slide(qmp: Callable[..., object], vmlinux: Path, *, kaslr: bool = True, force: bool = False) -> int:
    return kernel_address.slide(qmp, vmlinux, X86_64, kaslr=kaslr, force=force)


OURS = b"Linux version " + kernelfiles.BANNER.encode() + b"\n"


def test_a_kernel_that_kaslr_has_moved(vmlinux: Path) -> None:
    moved = 0x18000000
    assert slide(monitor(LINKED + moved, OURS, at=BANNER + moved), vmlinux) == moved


def test_a_kernel_that_has_not_set_up_its_traps_yet(vmlinux: Path) -> None:
    moved = 0x18000000
    assert slide(monitor(EARLY + moved, OURS, at=BANNER + moved), vmlinux) == moved


def test_a_kernel_whose_data_is_not_mapped(vmlinux: Path) -> None:
    assert slide(monitor(LINKED), vmlinux) == 0


def test_a_kernel_of_another_build(vmlinux: Path) -> None:
    theirs = OURS.replace(b"6.1", b"9.9")
    with pytest.raises(MismatchError, match=r"is not that of .*: it is Linux version 9.9"):
        slide(monitor(LINKED, theirs, at=BANNER), vmlinux)
    assert slide(monitor(LINKED, theirs, at=BANNER), vmlinux, force=True) == 0
    with pytest.raises(MismatchError, match="its exception handlers are at other addresses"):
        slide(monitor(LINKED + 0x1234), vmlinux)


def test_no_kernel_is_mapped_yet(vmlinux: Path) -> None:
    assert slide(monitor(0, table=0), vmlinux, kaslr=False) == 0
    with pytest.raises(StateError, match="KASLR has not chosen the kernel's address yet"):
        slide(monitor(0, table=0), vmlinux)
