"""The list of loaded modules, read from guest memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import gdb
import vmd_elf
import vmd_guest
import vmd_kernel
import vmd_module_files
import vmd_slide
from vmd_elf_symbols import Area

MODULE_STATE_UNFORMED = 3
MODULE_STATE_COMING = 1
"""Values of `enum module_state` in include/linux/module.h."""

_NOTE_SIZE = 64

_LIST = "modules"
_POINTER_BYTES = 8


class Module(NamedTuple):
    """A loaded module.

    Args:
        name: The kernel's name of it.
        address: Address of its text.
        sections: Addresses of its ELF sections, by name.
        freed: Whether the kernel has freed its init sections.
        where: Address of its `struct module`.
    """

    name: str
    address: int
    sections: dict[str, int]
    freed: bool
    where: int

    def lost(self, section: str) -> bool:
        """Whether the kernel has freed a section."""
        return self.freed and section.startswith(".init")

    def entry(self) -> gdb.Value:
        """Return its `struct module`."""
        return vmd_kernel.at(self.where, vmd_kernel.struct("module"))

    def areas(self) -> list[Area]:
        """Return the memory that the kernel has for it now."""
        entry = self.entry()
        if vmd_kernel.has_field(entry.type, "mem"):
            code = [int(gdb.parse_and_eval(name)) for name in ("MOD_TEXT", "MOD_INIT_TEXT")]
            memory = entry["mem"]
            first, last = memory.type.range()
            found = [
                Area(_unsigned(memory[number]["base"]), int(memory[number]["size"]), number in code)
                for number in range(first, last + 1)
            ]
        else:
            found = [part for name in ("core_layout", "init_layout") for part in _parts(entry[name])]
        return [each for each in found if each.size]

    def build_id(self) -> str:
        """Return its GNU build-id in hex, read from guest memory; "" if it has none."""
        note = self.sections.get(vmd_module_files.NOTE)
        return vmd_elf.build_id(vmd_guest.memory(note, _NOTE_SIZE)) if note is not None else ""


def _parts(layout: gdb.Value) -> tuple[Area, Area]:
    """Return code and data of a `struct module_layout`, of Linux before 6.4: the code comes first."""
    base, size, text = _unsigned(layout["base"]), int(layout["size"]), int(layout["text_size"])
    return Area(base, text, True), Area(base + text, size - text, False)


def loaded() -> list[Module]:
    """Return the modules, including those whose init function runs."""
    if _none():
        return []
    kind = vmd_kernel.struct("module")
    entries = vmd_kernel.list_for_each_entry(gdb.parse_and_eval(_LIST), kind, "list")
    return [_module(entry) for entry in entries if int(entry["state"]) != MODULE_STATE_UNFORMED]


def _none() -> bool:
    """Whether the list is empty: its head then points to itself. GDB need not look up its type for that."""
    head = vmd_slide.address(_LIST)
    if head is None:
        return False
    return vmd_guest.memory(head, _POINTER_BYTES) == head.to_bytes(_POINTER_BYTES, "little")


def _module(entry: gdb.Value) -> Module:
    return Module(
        name=entry["name"].string(),
        address=_text(entry),
        sections=dict(_sections(entry["sect_attrs"])),
        freed=int(entry["state"]) != MODULE_STATE_COMING,
        where=vmd_kernel.address_of(entry),
    )


def _text(entry: gdb.Value) -> int:
    if vmd_kernel.has_field(entry.type, "mem"):
        # Since Linux 6.4 (ac3b43283923) a module has several memory areas.
        return _unsigned(entry["mem"][int(gdb.parse_and_eval("MOD_TEXT"))]["base"])
    return _unsigned(entry["core_layout"]["base"])


def _sections(attributes: gdb.Value) -> Iterator[tuple[str, int]]:
    if not attributes:
        return  # a kernel without CONFIG_KALLSYMS does not record them
    attrs = attributes.dereference()["attrs"]
    for number in range(_count(attributes.dereference())):
        attribute = attrs[number]
        if vmd_kernel.has_field(attribute.type, "address"):
            # struct module_sect_attr, which contains a bin_attribute.
            yield attribute["battr"]["attr"]["name"].string(), _unsigned(attribute["address"])
        else:
            # Newer kernels have only the bin_attribute, with the address in its `private`.
            yield attribute["attr"]["name"].string(), _unsigned(attribute["private"])


def _count(attributes: gdb.Value) -> int:
    if vmd_kernel.has_field(attributes.type, "nsections"):
        return int(attributes["nsections"])
    # Newer kernels have no nsections either; the array ends with a null pointer.
    pointers = attributes["grp"]["bin_attrs"]
    count = 0
    while pointers[count]:
        count += 1
    return count


def _unsigned(value: gdb.Value) -> int:
    return int(value) & (2**64 - 1)
