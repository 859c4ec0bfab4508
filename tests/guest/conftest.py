"""Fixtures for tests with real kernels, which are built once in the user's cache and boot under QEMU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.accel import ACCEL
from tests.fixtures.nixfixture import FixtureFlake, fixture_flake
from vmdebug import arch, process, sources
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.vm import qemu_faults

_CRASH = "QEMU was killed by SIGSEGV"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let guests run one after the other in `make test`, and one that QEMU's crash has ended once more."""
    qemu = shutil.which(arch.native().qemu)
    crashes = qemu is not None and qemu_faults.crashes_with_cpus(Path(qemu))
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("guest"))
            if crashes:
                item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=_CRASH))


@pytest.fixture(autouse=True)
def _private_runtime(runtime: Path) -> None:
    """Run the VMs of each test in a private runtime directory."""


@pytest.fixture(scope="session")
def builtin() -> LaunchSpec:
    """The builtin guest; `make test` builds its kernel first."""
    return sources.resolve(
        GuestOptions(source="builtin", accel=ACCEL), report=silent, deadline=Deadline.after(60)
    )


@pytest.fixture(scope="session")
def kernel(builtin: LaunchSpec) -> Kernel:
    """The kernel of the builtin guest."""
    return builtin.kernel


@pytest.fixture(scope="session")
def initrd(builtin: LaunchSpec) -> Path:
    """The busybox initramfs."""
    assert isinstance(builtin.machine, OwnMachine)
    assert builtin.machine.initrd is not None
    return builtin.machine.initrd


@pytest.fixture(scope="session")
def assembled(
    kernel: Kernel, initrd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FixtureFlake]:
    """The fixture flake with the builtin kernel; tests share its store, so nothing is built twice."""
    directory = tmp_path_factory.mktemp("flake")
    yield fixture_flake(kernel, initrd, directory)
    # Files and directories in a store are read-only.
    process.run(["chmod", "-R", "u+w", directory], deadline=Deadline.after(60))
    shutil.rmtree(directory)


@pytest.fixture
def flake(assembled: FixtureFlake, monkeypatch: pytest.MonkeyPatch) -> FixtureFlake:
    """The fixture flake, as the current directory, and with its store."""
    for name, value in assembled.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(assembled.url)
    return assembled
