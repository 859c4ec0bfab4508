"""Debugging information of a vmlinux, wherever GDB finds it; the files are made by gcc and binutils."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import kernelfiles
from tests.unit.kernelfiles import ID, objcopy
from vmdebug.kimage import Dwarf, dwarf


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root directory, with /usr/lib/debug in it."""
    monkeypatch.setattr("vmdebug.kimage.debuginfo.ROOT", tmp_path / "root")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("options", "version"), [(("-gdwarf-4",), 4), (("-gdwarf-5",), 5), (("-gdwarf64", "-gdwarf-4"), 4)]
)
def test_its_version(tmp_path: Path, options: tuple[str, ...], version: int) -> None:
    assert dwarf(kernelfiles.vmlinux(tmp_path / "vmlinux", options=options)) == Dwarf(version=version)


def test_none(tmp_path: Path) -> None:
    assert dwarf(kernelfiles.vmlinux(tmp_path / "vmlinux", dwarf=False)) == Dwarf()


@pytest.mark.parametrize(
    ("style", "compression"), [("zlib", "zlib"), ("zlib-gnu", "zlib"), ("zstd", "zstd"), ("none", "")]
)
def test_compressed_sections(tmp_path: Path, style: str, compression: str) -> None:
    # A section that does not become smaller stays as it is.
    source = "".join(f"struct s{i} {{ int a{i}, b{i}; }} v{i};\n" for i in range(200))
    vmlinux = kernelfiles.vmlinux(tmp_path / "vmlinux", options=("-include", str(header(tmp_path, source))))
    objcopy(f"--compress-debug-sections={style}", vmlinux)
    assert dwarf(vmlinux) == Dwarf(version=5, compression=compression)


def header(directory: Path, text: str) -> Path:
    path = directory / "more.h"
    path.write_text(text)
    return path


@pytest.mark.parametrize("place", ["", ".debug", "root/usr/lib/debug"])
def test_the_file_that_a_debuglink_names(tmp_path: Path, place: str) -> None:
    vmlinux = kernelfiles.vmlinux(tmp_path / "vmlinux")
    kept = tmp_path / "vmlinux.debug"
    objcopy("--only-keep-debug", vmlinux, kept)
    objcopy("--strip-debug", f"--add-gnu-debuglink={kept}", vmlinux)
    within = tmp_path.relative_to("/") if place.startswith("root") else Path()
    there = tmp_path / place / within / kept.name
    there.parent.mkdir(parents=True, exist_ok=True)
    kept.rename(there)
    assert dwarf(vmlinux) == Dwarf(version=5, file=str(there), how=".gnu_debuglink")
    there.write_bytes(there.read_bytes() + b"\0")
    assert dwarf(vmlinux) == Dwarf(), "its checksum is another"


def test_the_file_of_a_debug_package(tmp_path: Path, root: Path) -> None:
    vmlinux = kernelfiles.vmlinux(tmp_path / "vmlinux")
    there = root / "usr/lib/debug/.build-id" / ID[:2] / f"{ID[2:]}.debug"
    there.parent.mkdir(parents=True)
    objcopy("--only-keep-debug", vmlinux, there)
    objcopy("--strip-debug", vmlinux)
    assert dwarf(vmlinux) == Dwarf(version=5, file=str(there), how="build-id")


def test_split_files(tmp_path: Path) -> None:
    vmlinux = kernelfiles.split(tmp_path / "vmlinux")
    assert dwarf(vmlinux) == Dwarf(version=5, split=1)
    (tmp_path / "vmlinux-kernel.dwo").unlink()
    assert dwarf(vmlinux).lacking == (str(tmp_path / "vmlinux-kernel.dwo"),)
    (tmp_path / "vmlinux.dwp").touch()
    assert dwarf(vmlinux).lacking == ()
