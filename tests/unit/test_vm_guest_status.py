"""How QEMU ended, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_vm_state import some_state
from vmdebug.guest import OwnMachine
from vmdebug.vm import guest_status


@pytest.mark.parametrize(
    ("status", "log", "words"),
    [
        (None, "", "QEMU has ended"),
        (0, "", "QEMU has exited with status 0"),
        (-11, "", "QEMU was killed by SIGSEGV"),
        (-11, None, "QEMU was killed by SIGSEGV"),
        (1, "first\nqemu: out of memory\n\n", "QEMU has exited with status 1; it wrote: qemu: out of memory"),
        (None, "qemu: it broke\n", "QEMU has ended; it wrote: qemu: it broke"),
    ],
)
def test_the_end_of_qemu(status: int | None, log: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "qemu.log"
    if log is not None:
        file.write_text(log)
    state = some_state(OwnMachine(initrd=Path("/i")))
    assert guest_status.end_of_qemu(state, status, file) == words
