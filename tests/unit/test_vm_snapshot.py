"""What a log says of a guest that went back to a snapshot."""

from __future__ import annotations

from vmdebug.vm import death, trouble

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
