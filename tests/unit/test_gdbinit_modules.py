"""Finding and decompressing the file of a module, without GDB."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import vmd_module_files
import zstandard

from vmdebug import paths

ELF = b"\x7fELF and more"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("brd.ko", "brd"),
        ("virtio-rng.ko.xz", "virtio_rng"),
        ("snd-hda-intel.ko.zst", "snd_hda_intel"),
        ("ext4.ko.gz", "ext4"),
        ("ext4.ko.debug", "ext4"),
        ("brd.o", None),
        ("brd.ko.bz2", None),
    ],
)
def test_the_kernels_name_of_a_module(file: str, name: str | None) -> None:
    assert vmd_module_files.module_name(file) == name


def test_the_first_directory_wins_and_in_one_directory_the_plainest_file(tmp_path: Path) -> None:
    for file in ("a/deep/brd.ko.xz", "a/deep/brd.ko", "b/brd.ko.debug", "b/null-blk.ko.zst", "b/notes.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert vmd_module_files.index([tmp_path / "a", tmp_path / "b", tmp_path / "nowhere"]) == {
        "brd": tmp_path / "a/deep/brd.ko",
        "null_blk": tmp_path / "b/null-blk.ko.zst",
    }


def test_links_to_directories_are_followed_but_not_to_what_it_was_built_from(tmp_path: Path) -> None:
    """As when NixOS merges the modules of several packages; links may form a loop."""
    for file in ("linux/drivers/brd.ko", "zfs/zfs.ko", "tree/fs/ext4.ko"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    merged = tmp_path / "lib/modules/6.12"
    merged.mkdir(parents=True)
    links = {"kernel": "linux", "extra": "zfs", "build": "tree", "source": "tree", "again": "lib"}
    for name, target in links.items():
        (merged / name).symlink_to(tmp_path / target)
    expected = {"brd": merged / "kernel/drivers/brd.ko", "zfs": merged / "extra/zfs.ko"}
    assert vmd_module_files.index([merged]) == expected
    walked = [Path(top, file) for top, files in paths.walk(merged) for file in files]
    assert sorted(walked) == sorted(expected.values())


@pytest.mark.parametrize(
    ("ending", "packed"),
    [
        (".xz", lzma.compress(ELF)),
        (".gz", gzip.compress(ELF, mtime=0)),
        (".zst", zstandard.ZstdCompressor().compress(ELF)),
    ],
)
def test_unpacked(ending: str, packed: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"brd.ko{ending}"
    file.write_bytes(packed)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert vmd_module_files.unpacked(file, scratch) == scratch / "brd.ko"
    assert (scratch / "brd.ko").read_bytes() == ELF
    file.write_bytes(packed[: len(packed) // 2])
    with pytest.raises((ValueError, OSError)):
        vmd_module_files.unpacked(file, scratch)


def test_what_is_not_packed_stays_where_it_is(tmp_path: Path) -> None:
    assert vmd_module_files.unpacked(tmp_path / "brd.ko", tmp_path) == tmp_path / "brd.ko"


def test_a_module_that_is_cut_off_is_called_damaged(tmp_path: Path) -> None:
    file = tmp_path / "brd.ko"
    header = b"\x7fELF\x02\x01".ljust(40, b"\0") + (4096).to_bytes(8, "little") + bytes(16)
    file.write_bytes(header)
    with pytest.raises(ValueError, match=r"brd\.ko is damaged"):
        vmd_module_files.build_id(file)
    whole = bytearray(gzip.compress(bytes(range(256)) * 64))
    whole[12:40] = b"\xff" * 28
    packed = tmp_path / "ext4.ko.gz"
    packed.write_bytes(whole)
    with pytest.raises(ValueError, match=r"ext4\.ko\.gz: "):
        vmd_module_files.unpacked(packed, tmp_path)
