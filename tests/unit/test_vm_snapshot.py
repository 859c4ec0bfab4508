"""The log of a guest after a snapshot is loaded, and the errors of QEMU for one that it cannot save."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import cast

import pytest

from vmdebug.channel.log import death, trouble
from vmdebug.errors import QmpError, VmError
from vmdebug.vm import snapshot
from vmdebug.vm.qmp import Qmp

PANIC = b"[    2.500000] Kernel panic - not syncing: sysrq triggered crash\r\n"
WARNING = b"[    2.000000] WARNING: CPU: 0 PID: 1 at kernel/panic.c:1 f+0x1/0x2\r\n"
BOOT = b"[    0.000000] Linux version 6.1.0\r\n"


def test_it_has_not_died_of_what_came_later() -> None:
    log = BOOT + PANIC
    assert death.cause_in_log(log).startswith("Kernel panic")
    assert death.cause_in_log(log + death.restored("a")) == ""
    assert death.cause_in_log(log + death.restored("a") + PANIC).startswith("Kernel panic")


def test_what_it_complains_of_again_has_happened_again() -> None:
    once = trouble.find((BOOT + WARNING).decode(), stamped=None)
    again = trouble.find((BOOT + WARNING + death.restored("a") + WARNING).decode(), stamped=None)
    assert [each.kind for each in once] == ["warn"]
    assert [each.kind for each in again] == ["warn", "warn"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("Error while writing VM state: Input/output error", "set TMPDIR"),
        ("Could not write: No space left on device", "set TMPDIR"),
        ("Device 'disk0' is writable but does not support snapshots", "to qcow2"),
        ("VirtFS device is active", "unmount the 9p shares"),
        ("VirtFS export path '/' is mounted using mount_tag 'vmdebug-root'", "--root-image always"),
    ],
)
def test_what_qemu_cannot_take_is_told_with_what_to_do(words: str, hint: str) -> None:
    class Refusing:
        def listen(self, *names: str) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

        def execute(self, command: str, arguments: object) -> None:
            raise QmpError(words)

    with pytest.raises(VmError, match=words) as raised:
        snapshot._run(cast("Qmp", Refusing()), "it cannot be taken", "snapshot-save", {})
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("start", "driver", "saved"),
    [
        (b"\0" * 1024 + b"\xe2\xe1\xf5\xe0", "raw", False),
        (b"hsqs", "raw", False),
        (b"\0" * 2048, "raw", True),
        (b"hsqs", "qcow2", True),
    ],
)
def test_a_disk_that_no_guest_can_write_needs_no_snapshot(
    tmp_path: Path, start: bytes, driver: str, *, saved: bool
) -> None:
    """erofs, the store of a NixOS VM, and squashfs."""
    disk = tmp_path / "store.img"
    disk.write_bytes(start)
    inserted = {"node-name": "#block1", "ro": False, "drv": driver, "file": str(disk)}

    class Answering:
        def execute(self, command: str, arguments: object = None) -> object:
            return [{"inserted": inserted}] if command == "query-block" else []

    assert list(snapshot._nodes(cast("Qmp", Answering()))) == (["#block1"] if saved else [])
