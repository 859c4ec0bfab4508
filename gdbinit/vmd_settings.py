"""Undoes settings of a person's gdbinit with which GDB cannot debug a kernel in QEMU."""

from __future__ import annotations

import gdb
import vmd_arch
import vmd_batch
import vmd_language

_AUTOMATIC = (
    ("architecture", "GDB cannot read the guest's registers"),
    ("endian", "GDB cannot read the guest's memory"),
)
"""Settings that must be `auto`, and why."""


def adapt() -> None:
    """Change these settings, and print which were changed."""
    if gdb.parameter("non-stop"):
        _set("non-stop", "off", "the gdbstub stops all CPUs at once")
    for name, reason in _AUTOMATIC:
        before = gdb.parameter(name)
        if before not in _harmless(name):
            _set(name, "auto", f"with {before} {reason}")
    vmd_language.adapt()


def _harmless(name: str) -> tuple[str, ...]:
    row = vmd_arch.known() if name == "architecture" else None
    return ("auto", *(row.gdb_names if row is not None else ()))


def _set(name: str, value: str, reason: str) -> None:
    gdb.execute(f"set {name} {value}", to_string=True)
    vmd_batch.say(f"set {name} {value}: {reason}")
