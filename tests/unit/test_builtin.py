from pathlib import Path

import pytest

from tests.unit import kernelfiles
from tests.unit.kernelfiles import ID, OTHER_ID, RELEASE
from vmdebug.errors import HostError, MismatchError
from vmdebug.guest import Kernel
from vmdebug.sources import builtin
from vmdebug.sources.builtin import BuiltKernel


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = kernelfiles.tree(tmp_path / "kernel", source=tmp_path / "source")
    record = BuiltKernel(
        directory=directory,
        image=directory / "arch/x86/boot/bzImage",
        vmlinux=directory / "vmlinux",
        modules=directory / f"install/lib/modules/{RELEASE}",
        config=directory / ".config",
        release=RELEASE,
        source=tmp_path / "source",
        origin=tmp_path / "linux-source.tar.xz",
        fragments=("base",),
        objects=1,
        cpu_seconds=1.0,
    )
    monkeypatch.setattr(builtin, "built", lambda: record)
    return directory


def test_all_that_was_built(built: Path, tmp_path: Path) -> None:
    assert builtin.kernel() == Kernel(
        image=built / "arch/x86/boot/bzImage",
        origin="the builtin kernel",
        arch="x86_64",
        build_id=ID,
        release=RELEASE,
        vmlinux=built / "vmlinux",
        gdb_scripts=built,
        modules=built / f"install/lib/modules/{RELEASE}",
        source=tmp_path / "source",
    )


def test_not_built() -> None:
    with pytest.raises(HostError, match="not built") as caught:
        builtin.kernel()
    assert "vmdebug kernel build" in caught.value.hint


def test_a_vmlinux_that_does_not_belong(built: Path) -> None:
    kernelfiles.vmlinux(built / "vmlinux", OTHER_ID)
    with pytest.raises(MismatchError):
        builtin.kernel()
