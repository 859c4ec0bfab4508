"""What every test gets: a runtime directory of its own, checked for leavings."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdebug.process import ProcessRef

GUARDIAN_SECONDS = 5.0


def pytest_configure() -> None:
    """Undo what `make test &` in a script does, and `nohup`: what is ignored, tests would hand on."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private $XDG_RUNTIME_DIR, short enough for sockets; at the end no VM is left in it."""
    directory = Path(tempfile.mkdtemp(prefix="vmd-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    try:
        yield directory
        # After a kill -9 the guardian clears up by itself; it may be at its last step.
        processes = [line for ref, line in _started_from(directory) if not ref.wait(GUARDIAN_SECONDS)]
        left = [str(path) for path in (directory / "vmdebug").glob("*/*")]
    finally:
        shutil.rmtree(directory)
    assert not left, f"left in the runtime directory: {left}"
    assert not processes, f"left running: {processes}"


def _started_from(directory: Path) -> list[tuple[ProcessRef, str]]:
    """Return the processes whose command line names the directory, as each VM's QEMU and GDB does."""
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
