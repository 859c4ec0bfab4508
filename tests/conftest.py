"""A private runtime directory for each test, which must be empty at its end."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vmdebug.process import ProcessRef

GUARDIAN_SECONDS = 5.0


# A busy machine must not fail a property test.
settings.register_profile("vmdebug", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmdebug")


def pytest_configure() -> None:
    """Restore signals that `nohup`, or `make test &` in a script, ignores: children inherit this."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private $XDG_RUNTIME_DIR with a short path, for sockets; fails the test if a VM is left in it."""
    directory = Path(tempfile.mkdtemp(prefix="vmd-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    try:
        yield directory
        # After a kill -9 the guardian cleans up; give it time to finish.
        processes = [line for ref, line in _started_from(directory) if not ref.wait(GUARDIAN_SECONDS)]
        left = [str(path) for path in (directory / "vmdebug").glob("*/*")]
    finally:
        shutil.rmtree(directory)
    assert not left, f"left in the runtime directory: {left}"
    assert not processes, f"left running: {processes}"


def _started_from(directory: Path) -> list[tuple[ProcessRef, str]]:
    """Return the processes with the directory in their command line, such as the QEMU and GDB of a VM."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        ref = ProcessRef.of(int(cmdline.parent.name))
        if str(directory) in words and ref is not None:
            found.append((ref, words))
    return found
