"""Makes small kernel files for tests: a vmlinux with gcc, a boot image with it, a build tree."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import lz4.block
import zstandard

from vmdebug import process
from vmdebug.deadline import Deadline

RELEASE = "6.1.0-test"
WHO = "(me@here)"
COMPILER = "(gcc (Debian 12.2.0-14) 12.2.0, GNU ld (GNU Binutils) 2.40)"
NUMBER = "#1 SMP Mon Jan  1 00:00:00 UTC 2024"
VERSION = f"{RELEASE} {WHO} {NUMBER}"
BANNER = f"{RELEASE} {WHO} {COMPILER} {NUMBER}"

ID = "11" * 20
OTHER_ID = "22" * 20

_SOURCE = """
const char linux_banner[] = "%s";
const char *start_kernel(void) { return linux_banner; }
void _start(void) { start_kernel(); }
"""


def vmlinux(
    path: Path, build_id: str = ID, *, banner: str = BANNER, dwarf: bool = True, options: tuple[str, ...] = ()
) -> Path:
    """Make an ELF file with the banner and build-id of a kernel; no build-id note if `build_id` is ""."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = f"0x{build_id}" if build_id else "none"
    said = f"Linux version {banner}\\n" if banner else ""
    compiler = ["gcc", "-nostdlib", "-static", "-fno-stack-protector", "-O1", *(["-g"] if dwarf else [])]
    process.run(
        [*compiler, *options, f"-Wl,--build-id={note}", "-x", "c", "-", "-o", path],
        stdin=(_SOURCE % said).encode(),
        deadline=Deadline.after(60),
    )
    return path


def split(path: Path) -> Path:
    """Make a vmlinux whose types are in a `.dwo` file beside it, like -gsplit-dwarf."""
    process.run(
        [
            "gcc",
            "-g",
            "-gsplit-dwarf",
            "-fno-stack-protector",
            "-c",
            "-x",
            "c",
            "-",
            "-o",
            "vmlinux-kernel.o",
        ],
        stdin=(_SOURCE % f"Linux version {BANNER}\\n").encode(),
        cwd=path.parent,
        deadline=Deadline.after(60),
    )
    link: list[str | Path] = [
        "gcc",
        "-nostdlib",
        "-static",
        f"-Wl,--build-id=0x{ID}",
        "vmlinux-kernel.o",
        "-o",
        path,
    ]
    process.run(link, cwd=path.parent, deadline=Deadline.after(60))
    return path


def objcopy(*words: str | Path) -> None:
    """Run objcopy of binutils."""
    process.run(["objcopy", *words], deadline=Deadline.after(60))


def _lz4(data: bytes) -> bytes:
    blocks = [
        lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)
    ]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": _lz4,
    "uncompressed": bytes,
}


def bzimage(kernel: bytes, *, packer: str = "gzip", version: str = VERSION, protocol: int = 0x020F) -> bytes:
    """Return a boot image: setup sectors, version string, compressed kernel."""
    packed = PACKERS[packer](kernel)
    if packer not in ("gzip", "uncompressed"):
        packed += struct.pack("<I", len(kernel))  # size_append of scripts/Makefile.lib
    return raw_bzimage(packed, version=version, protocol=protocol)


def raw_bzimage(packed: bytes, *, version: str = VERSION, protocol: int = 0x020F) -> bytes:
    """Return a boot image with a given payload."""
    sectors, text, gap = 3, 0x300, 64
    setup = bytearray((sectors + 1) * 512)
    setup[0x1F1] = sectors
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, text - 0x200 if version else 0)
    struct.pack_into("<II", setup, 0x248, gap, len(packed))
    setup[text : text + len(version) + 1] = version.encode() + b"\0"
    return bytes(setup) + bytes(gap) + packed + bytes(512)


def uki(**sections: bytes) -> bytes:
    """Return a unified kernel image: a PE file for EFI, without code, with these sections."""
    table, contents, at = b"", b"", 4096
    for name, data in sections.items():
        stored = -(-len(data) // 512) * 512
        place = (len(data), at << 8, stored, at, 0, 0, 0, 0, 0x40000040)
        table += struct.pack("<8sIIIIIIHHI", f".{name}".encode(), *place)
        contents += data.ljust(stored, b"\0")
        at += stored
    optional = struct.pack("<H", 0x20B).ljust(240, b"\0")
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 0, 0, len(optional), 0x206)
    start = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
    return (start.ljust(0x80, b"\0") + coff + optional + table).ljust(4096, b"\0") + contents


def image(path: Path, kernel: Path, *, packer: str = "gzip", version: str = VERSION) -> Path:
    """Make a boot image with a vmlinux."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bzimage(kernel.read_bytes(), packer=packer, version=version))
    return path


def tree(directory: Path, build_id: str = ID, *, source: Path | None = None, scripts: bool = True) -> Path:
    """Make a build tree like that of `make`; with `source`, like that of `make O=`."""
    kernel = vmlinux(directory / "vmlinux", build_id)
    image(directory / "arch/x86/boot/bzImage", kernel)
    (directory / "include/config").mkdir(parents=True)
    (directory / ".config").write_text("".join(f"CONFIG_{name}=y\n" for name in CONFIG))
    top = source or directory
    (top / "init").mkdir(parents=True, exist_ok=True)
    (top / "init/Kconfig").write_text("")
    if source is not None:
        (directory / "source").symlink_to(source)
        (directory / "Makefile").write_text(f"# Automatically generated\ninclude {source}/Makefile\n")
    if scripts:
        gdb_scripts(directory)
    return directory


CONFIG = ("X86_64", "64BIT", "BLK_DEV_INITRD", "BINFMT_ELF", "PROC_FS", "SERIAL_8250_CONSOLE", "TTY")
"""What a kernel needs to reach vmdebug's shell."""

MAGIC = f"{RELEASE} SMP preempt mod_unload "

_MODULE = """
#define INFO(number, text) static const char info##number[] __attribute__((section(".modinfo"), used)) = text
INFO(0, "license=GPL");
INFO(1, "vermagic=%s");
INFO(2, "name=%s");
static const char exported[] __attribute__((section("__ksymtab_strings"), used)) = "%s_add";
extern int %s_add(int);
static char it[64] __attribute__((section(".gnu.linkonce.this_module"), used)) = {1};
int %s_add(int a) { return %s; }
"""


def module(path: Path, magic: str = MAGIC, *, needs: str = "") -> Path:
    """Make a module with debug information, as far as modinfo, depmod and binutils read it.

    Args:
        path: The file: "NAME.ko".
        magic: Its vermagic.
        needs: The name of a module whose function it calls; "" for none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.stem.replace("-", "_")
    called = f"{needs}_add(a)" if needs else "a + 1"
    process.run(
        ["gcc", "-g", "-O1", "-c", "-Wa,--noexecstack", "-x", "c", "-", "-o", path],
        stdin=(_MODULE % (magic, name, name, needs or name, name, called)).encode(),
        deadline=Deadline.after(60),
    )
    return path


def gdb_scripts(directory: Path) -> Path:
    """Make the kernel's GDB scripts, like `make scripts_gdb`."""
    generated = directory / "scripts/gdb/linux"
    generated.mkdir(parents=True)
    (generated / "constants.py").write_text("")
    (directory / "scripts/gdb/vmlinux-gdb.py").write_text("")
    (directory / "vmlinux-gdb.py").symlink_to(directory / "scripts/gdb/vmlinux-gdb.py")
    return directory
