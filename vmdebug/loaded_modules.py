"""Finds the modules that a running guest has loaded: their addresses, and their files with symbols."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

from vmdebug import paths
from vmdebug.channel.shell import Streams
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.guest import Kernel
from vmdebug.kimage import module_file, symbols
from vmdebug.trace.expressions.module_image import PlacedModule
from vmdebug.trace.probe import Wanted
from vmdebug.vm import Vm

_LIST = r"""
cd /sys/module || exit
echo */notes/.note.gnu.build-id
od -An -v -tx1 */notes/.note.gnu.build-id 2>/dev/null | tr -d ' \n'
echo
grep -H "" */sections/.[a-z_]* /dev/null 2>/dev/null
"""
"""Prints the files of all notes with a build-id, these notes in hex, and MODULE/sections/SECTION:ADDRESS.

One program for all modules: starting one takes an emulated guest several ms. Not with `read` of the shell,
which reads single bytes: only the first read of such a file succeeds, see `module_sect_read` of
kernel/module/sysfs.c.
"""

_NOTE = struct.Struct("<III4s")
"""Elf64_Nhdr, and the name "GNU"; the build-id follows, filled up to 4 bytes."""


def needed(wanted: Wanted, machine: Vm, *, timeout: float) -> tuple[PlacedModule, ...]:
    """Return the modules that a trace may need: for functions that the vmlinux lacks, patterns, backtraces.

    Args:
        wanted: The trace.
        machine: The VM.
        timeout: Seconds for the guest's shell to answer.

    Returns:
        The modules; () if the trace does not need them, or the guest cannot tell now.
    """
    vmlinux = machine.state.spec.kernel.vmlinux
    if vmlinux is None:
        return ()
    names = [each.where.partition("+")[0] for each in wanted.probes]
    places = [each for each in names if not (each.isidentifier() and symbols.addresses(vmlinux, each))]
    return loaded(machine, timeout=timeout) if places or wanted.backtrace else ()


def loaded(machine: Vm, *, timeout: float) -> tuple[PlacedModule, ...]:
    """Return what `find` does; () if the guest cannot tell now, or no files of modules are known."""
    if not machine.state.spec.kernel.module_files():
        return ()
    try:
        return find(machine, timeout=timeout)
    except VmdebugError:
        return ()


def find(machine: Vm, *, timeout: float) -> tuple[PlacedModule, ...]:
    """Return the modules of a running guest whose files are known, and are of the build that it has loaded.

    Args:
        machine: The VM.
        timeout: Seconds for the guest's shell to answer.

    Raises:
        StateError: the guest does not run.
        VmdebugError: it has no shell that answers.
    """
    listed = machine.shell.run(_LIST, streams=Streams(), deadline=Deadline.after(timeout)).stdout
    return tuple(with_files(listed, machine.state.spec.kernel))


def with_files(listed: str, kernel: Kernel) -> Iterator[PlacedModule]:
    """Yield the modules of a list that `_LIST` has printed, with their files.

    Args:
        listed: The list.
        kernel: The kernel, with the places of its modules' files.
    """
    loaded = list(_parsed(listed))
    if not loaded:
        return
    wanted = {name for name, _, _ in loaded}
    files = [
        (paths.module_name(each), each)
        for each in itertools.chain.from_iterable(map(paths.modules, kernel.module_files()))
        if paths.module_name(each) in wanted
    ]
    for name, build_id, sections in loaded:
        for known, file in files:
            if known == name and module_file.build_id(file) in ("", build_id):
                yield PlacedModule(name=name, file=file, sections=sections)
                break


def _parsed(listed: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Yield the name, the build-id ("" if unknown) and the sections' addresses of each module."""
    files, notes, rows = (*listed.split("\n", 2), "", "")[:3]
    names = [each.partition("/")[0] for each in files.split()]
    build_ids = dict(zip(names, _build_ids(bytes.fromhex(notes)), strict=False))
    sections: dict[str, dict[str, int]] = {}
    for row in rows.splitlines():
        path, _, address = row.rpartition(":")
        name, _, section = path.partition("/sections/")
        sections.setdefault(name, {})[section] = int(address, 16)
    for name, places in sections.items():
        yield name, build_ids.get(name, ""), places


def _build_ids(notes: bytes) -> Iterator[str]:
    at = 0
    while at + _NOTE.size <= len(notes):
        _, size, _, _ = _NOTE.unpack_from(notes, at)
        at += _NOTE.size
        yield notes[at : at + size].hex()
        at += -(-size // 4) * 4
