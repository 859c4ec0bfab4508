"""Finds the modules that a running guest has loaded: their addresses, and their files with symbols."""

from __future__ import annotations

import itertools
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
for directory in /sys/module/*/sections; do
	module=${directory%/sections}
	[ -d "$directory" ] || continue
	printf '%s ' "${module##*/}"
	od -An -v -tx1 "$module/notes/.note.gnu.build-id" 2>/dev/null | tr -d ' \n'
	echo
	(cd "$directory" && grep -H "" .[a-z_]*)
done
"""
"""Prints each module's name and its note with the build-id in hex, then SECTION:ADDRESS lines.

Not with `read` of the shell, which reads single bytes: only the first read of such a file succeeds, see
`module_sect_read` of kernel/module/sysfs.c.
"""

_NOTE_HEADER = 16
"""The bytes before the build-id in its note: an Elf64_Nhdr, and the name "GNU"."""


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
    lines = listed.splitlines()
    starts = [number for number, line in enumerate(lines) if not line.startswith(".")]
    for start, end in itertools.pairwise([*starts, len(lines)]):
        name, _, note = lines[start].partition(" ")
        rows = (line.split(":") for line in lines[start + 1 : end])
        sections = {section: int(address, 16) for section, address in rows}
        yield name, note[2 * _NOTE_HEADER :], sections
