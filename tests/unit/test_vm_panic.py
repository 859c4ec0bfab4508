from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug.channel.log import death

WORDS = b"Kernel panic - not syncing: sysrq triggered crash\r\n"


@pytest.mark.parametrize(
    "text",
    [
        b"[    1.234567] " + WORDS,
        b"[12345.234567] " + WORDS,
        b"[    1.234567][    T1] " + WORDS,
        b"[    1.234567][ C0] " + WORDS,
        WORDS,
        b"booting\r\n" + WORDS + b"[    1.2] ---[ end Kernel panic - not syncing: x ]---\r\n",
        b"~ # [    1.234567] " + WORDS,
    ],
)
def test_a_panic_is_seen(tmp_path: Path, text: bytes) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(text)
    assert death.panicked(log)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"all is well\r\n",
        b"~ # echo Kernel panic - not syncing\r\n",
        b"[ 1.2] no Kernel panic - not yet",
    ],
)
def test_no_panic_is_seen(tmp_path: Path, text: bytes) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(text)
    assert not death.panicked(log)


def test_no_log_is_no_panic(tmp_path: Path) -> None:
    assert not death.panicked(tmp_path / "nothing")


def test_the_end_of_a_long_log_is_looked_at(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * (2 * death.LOOKED_AT) + b"\n" + WORDS)
    assert death.panicked(log)
