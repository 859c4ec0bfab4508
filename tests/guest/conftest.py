"""Real kernels: built once into the user's cache, booted under QEMU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.nixfixture import FixtureFlake, fixture_flake
from vmdebug import process, sources
from vmdebug.deadline import Deadline
from vmdebug.guest import GuestOptions, Kernel, LaunchSpec, OwnMachine
from vmdebug.progress import silent


@pytest.fixture(autouse=True)
def _private_runtime(runtime: Path) -> None:
    """Every guest test runs its VMs in a runtime directory of its own."""


@pytest.fixture(scope="session")
def builtin() -> LaunchSpec:
    """The builtin guest; `make test` has built its kernel."""
    return sources.resolve(
        GuestOptions(source="builtin", accel="tcg"), report=silent, deadline=Deadline.after(60)
    )


@pytest.fixture(scope="session")
def kernel(builtin: LaunchSpec) -> Kernel:
    """The builtin guest's kernel, with all that belongs to it."""
    return builtin.kernel


@pytest.fixture(scope="session")
def initrd(builtin: LaunchSpec) -> Path:
    """Our busybox initramfs."""
    assert isinstance(builtin.machine, OwnMachine)
    assert builtin.machine.initrd is not None
    return builtin.machine.initrd


@pytest.fixture(scope="session")
def assembled(
    kernel: Kernel, initrd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FixtureFlake]:
    """The flake with the builtin kernel in it; one store for all, so that what is built is built once."""
    directory = tmp_path_factory.mktemp("flake")
    yield fixture_flake(kernel, initrd, directory)
    # What is in a store is read-only, directories too.
    process.run(["chmod", "-R", "u+w", directory], deadline=Deadline.after(60))
    shutil.rmtree(directory)


@pytest.fixture
def flake(assembled: FixtureFlake, monkeypatch: pytest.MonkeyPatch) -> FixtureFlake:
    """The flake, from inside its directory and with its store."""
    for name, value in assembled.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(assembled.url)
    return assembled
