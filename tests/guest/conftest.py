"""Real kernels: built once into the user's cache, booted under QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug import sources
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
