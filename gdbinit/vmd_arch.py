"""The facts about the guest's architecture.

vmdebug passes them to a GDB that it starts, see `vmd_preload`. Any other GDB reads them from `arches/`,
according to GDB's name of the architecture of its vmlinux or guest. `Debug` in `vmdebug/arch.py` describes
the fields.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import gdb
import vmd_preload


class PatchedText(NamedTuple):
    """A table of instructions that the kernel rewrites; see `PatchedText` in `vmdebug/arch.py`."""

    what: str
    start: str
    stop: str
    entry: str
    relative: bool
    length: str
    done: str


class Arch(NamedTuple):
    """One architecture. Hexadecimal strings of the JSON file are numbers here."""

    name: str
    gdb_names: tuple[str, ...]
    first_symbols: tuple[str, ...]
    identity_mapped: tuple[str, ...]
    hardware_breakpoints: int
    breakpoint_kind: int
    kernel_map: int
    kaslr_step: int
    kaslr_places: int
    first_accesses: tuple[str, ...]
    first_accesses_roms: tuple[str, ...]
    zero_based_below: int
    per_cpu_register: str
    paging_register: str
    paging_bit: int
    vectors: str
    vector_bytes: int
    vector_address: tuple[tuple[int, int], ...]
    first_vector: str
    early_vector: str
    pc: str
    sp: str
    result: str
    arguments: tuple[str, ...]
    return_address_bytes: int
    calls: str
    returns: str
    jumps: str
    return_thunks: tuple[str, ...]
    frame_pointer: str
    frame_push: str
    frame_set: str
    frame_pops: tuple[str, ...]
    exception_entry: str
    pt_regs: tuple[str, ...]
    unwound: tuple[str, ...]
    mode_register: str
    user_mode: int
    switch_frame: str
    switch_registers: dict[str, str]
    patched_text: tuple[PatchedText, ...]


_HEXADECIMAL = ("kernel_map", "kaslr_step", "zero_based_below")

_given: Arch | None = None


def use(facts: dict[str, Any]) -> None:
    """Use these facts, whatever architecture GDB detects.

    Args:
        facts: The `debug` part of a row.
    """
    global _given  # noqa: PLW0603 - one GDB, one guest
    _given = _row(facts)


def current() -> Arch:
    """Return the guest's architecture.

    Raises:
        gdb.GdbError: vmdebug does not support it.
    """
    row = known()
    if row is None:
        supported = ", ".join(each.name for each in _shipped())
        raise gdb.GdbError(
            f"no support for {_gdb_name()} kernels: supported are {supported}\nload vmlinux: file VMLINUX"
        )
    return row


def known() -> Arch | None:
    """Return the guest's architecture; None if vmdebug does not support it."""
    return _given or next((row for row in _shipped() if _gdb_name() in row.gdb_names), None)


def _gdb_name() -> str:
    return gdb.selected_inferior().architecture().name()


@functools.cache
def _shipped() -> tuple[Arch, ...]:
    import json  # noqa: PLC0415 - only imported if vmdebug did not start this GDB

    files = sorted((Path(__file__).parent / "arches").glob("*.json"))
    return tuple(_row(json.loads(file.read_text())["debug"]) for file in files)


def _row(facts: dict[str, Any]) -> Arch:
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
    }
    numbers = {name: int(facts[name], 16) for name in _HEXADECIMAL}
    patched = tuple(PatchedText(**each) for each in facts["patched_text"])
    return Arch(**{**plain, **numbers, "patched_text": patched})


if vmd_preload.facts is not None:
    use(vmd_preload.facts)
