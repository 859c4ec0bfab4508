"""Fixtures for the tests that need a QEMU whose plugins read registers; see `make test-qemu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import sources, vm
from vmdebug.deadline import Deadline
from vmdebug.guest import LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.session import DebugSession


@pytest.fixture(autouse=True)
def _private_runtime(runtime: Path) -> None:
    """Run the VMs of each test in a private runtime directory."""


@pytest.fixture(scope="session")
def builtin() -> LaunchSpec:
    """The builtin guest under TCG."""
    options = GuestOptions(source="builtin", accel="tcg")
    return sources.resolve(options, report=silent, deadline=Deadline.after(60))


@pytest.fixture
def session(builtin: LaunchSpec) -> Iterator[DebugSession]:
    """A session on the builtin guest, at its shell."""
    with DebugSession(vm.launch(builtin, bound=True, timeout=SECONDS), owned=True) as made:
        assert made.vm.state.untraceable == ""
        made.exec("true", timeout=SECONDS)
        yield made
