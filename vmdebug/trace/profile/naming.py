"""Names the addresses of samples: of the kernel, its modules, and programs and libraries of user space."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from vmdebug.kimage import symbols
from vmdebug.trace.profile.callers import Callers
from vmdebug.trace.profile.profile import Profile, ProfileFrame, ProfileSample, ProfileTask
from vmdebug.trace.profile.programs import Program
from vmdebug.trace.profile.raw import Collected, Mapped, RawSample

_SYMBOL = re.compile(r"^([0-9a-f]+) [tTwW] (\S+)(?:\t\[(\S+)\])?$", re.MULTILINE)
"""A function in /proc/kallsyms."""

_FAR = 1 << 24
"""How far behind the start of a symbol without a size an address may be."""

KERNEL = "vmlinux"


class _Ranges:
    """Functions by address."""

    def __init__(self, rows: Iterable[tuple[int, int, ProfileFrame]]) -> None:
        self._rows = sorted(rows, key=lambda row: row[0])
        self._starts = [row[0] for row in self._rows]

    def at(self, address: int) -> ProfileFrame | None:
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0:
            return None
        start, size, frame = self._rows[number]
        return frame if address - start < (size or _FAR) else None


class Namer:
    """Names the addresses of a profile.

    Args:
        vmlinux: The kernel's symbols, or None.
        slide: How far KASLR has moved it.
        collected: The profile.
        expand: Returns the functions that are at an address of the kernel, the inlined ones first; None: only
            the function of the symbol table.
        callers: Finds callers that backtraces leave out; None: do not look for them.
    """

    def __init__(
        self,
        vmlinux: Path | None,
        slide: int,
        collected: Collected,
        expand: Callable[[int, int], Sequence[str]] | None = None,
        callers: Callers | None = None,
    ) -> None:
        self._collected = collected
        self._callers = callers
        self._expand = expand
        self._kernel = _Ranges(_of_vmlinux(vmlinux, slide) if vmlinux is not None else ())
        self._listed = _Ranges(_of_kallsyms(collected.kallsyms))
        self._programs: dict[str, Program | None] = {}
        self._frames: dict[ProfileFrame, int] = {}
        self._known: dict[tuple[object, ...], tuple[int, ...]] = {}
        self._without: dict[int, bool] = {}

    def profile(self, *, collector: str, vm: str, kernel: str) -> Profile:
        """Return the profile with names."""
        collected = self._collected
        stacks: dict[tuple[int, ...], int] = {}
        tasks: dict[ProfileTask, int] = {}
        samples = []
        first = collected.samples[0].time if collected.samples else 0
        for raw in collected.samples:
            stack = stacks.setdefault(self._stack(raw), len(stacks))
            task = tasks.setdefault(ProfileTask(raw.pid, raw.tid, raw.comm), len(tasks))
            samples.append(ProfileSample((raw.time - first) / 1e9, raw.cpu, task, stack, raw.weight))
        return Profile(
            unit=collected.unit,
            period=collected.period,
            seconds=collected.seconds,
            collector=collector,
            vm=vm,
            kernel=kernel,
            frames=tuple(self._frames),
            stacks=tuple(stacks),
            tasks=tuple(tasks),
            samples=tuple(samples),
            notes=(*collected.notes, *self._notes()),
        )

    def _stack(self, raw: RawSample) -> tuple[int, ...]:
        """Return the stack of a sample as indexes of frames, the outermost first."""
        found = self._users(raw)
        found.reverse()
        kernel: list[int] = []
        for level, address in enumerate(raw.kernel):
            kernel += self._of_kernel(address, before=int(level > 0))
            if level == 0 and self._callers is not None and len(raw.kernel) > 1:
                caller = self._callers.left_out(address, raw.kernel[1])
                kernel += self._of_kernel(caller, before=0) if caller is not None else ()
        kernel.reverse()
        return (*found, *kernel)

    def _users(self, raw: RawSample) -> list[int]:
        """Return the frames of user space, innermost first.

        A program that is built without frame pointers has anything in their register: its chain ends at the
        first address that no program is mapped at.
        """
        found: list[int] = []
        for level, address in enumerate(raw.user):
            frame = self._user(raw, address, before=int(level > 0))
            if frame is None and level:
                break
            if frame is None:
                frame = self._index(ProfileFrame("[unknown]", "", "user"))
            if found[-1:] != [frame] or not self._bare(frame):
                found.append(frame)
        return found

    def _of_kernel(self, address: int, before: int) -> tuple[int, ...]:
        key = ("", address, before)
        if key not in self._known:
            frame = self._kernel.at(address - before)
            frame = frame if frame is not None else self._listed.at(address - before)
            frame = frame if frame is not None else ProfileFrame(hex(address), "", "kernel")
            names = [frame]
            if self._expand is not None and frame.where == KERNEL:
                inlined = self._expand(address, before)[:-1]
                names = [ProfileFrame(each, KERNEL, "kernel") for each in inlined] + names
            self._known[key] = tuple(self._index(each) for each in names)
        return self._known[key]

    def _user(self, raw: RawSample, address: int, before: int) -> int | None:
        mapping = self._collected.mapping(raw.pid, address - before, raw.time)
        if mapping is None:
            return None
        key = (mapping.path, address - mapping.start + mapping.offset, before)
        if key not in self._known:
            self._known[key] = (self._index(self._of_file(mapping, address - before)),)
        return self._known[key][0]

    def _of_file(self, mapping: Mapped, address: int) -> ProfileFrame:
        """Return the function at an address of a file."""
        offset = address - mapping.start + mapping.offset
        where = PurePosixPath(mapping.path).name or "[anonymous]"
        program = self._program(mapping)
        name = program.function_at(offset) if program is not None else ""
        # One frame for all addresses of a file without symbols: they say little, and would cut the graph up.
        return ProfileFrame(name or f"[{where.strip('[]')}]", where, "user")

    def _bare(self, frame: int) -> bool:
        """Return whether a frame stands for a file without symbols."""
        if frame not in self._without:
            self._without[frame] = list(self._frames)[frame].name.startswith("[")
        return self._without[frame]

    def _program(self, mapping: Mapped) -> Program | None:
        path = mapping.path
        if path not in self._programs:
            read = functools.partial(self._collected.read_file, mapping.pid)
            data = read(path) if path.startswith("/") else None
            self._programs[path] = Program.read(data, read) if data is not None else None
        return self._programs[path]

    def _notes(self) -> list[str]:
        bare = sorted(
            path
            for path, program in self._programs.items()
            if path.startswith("/") and (program is None or program.empty)
        )
        if not bare:
            return []
        return [f"no symbols in {', '.join(bare[:5])}{' and others' if len(bare) > 5 else ''}"]  # noqa: PLR2004

    def _index(self, frame: ProfileFrame) -> int:
        return self._frames.setdefault(frame, len(self._frames))


def _of_vmlinux(vmlinux: Path, slide: int) -> list[tuple[int, int, ProfileFrame]]:
    return [
        (each.address + slide, each.size, ProfileFrame(each.name, KERNEL, "kernel"))
        for each in symbols.functions(vmlinux)
        if not each.name.startswith("__pfx_")
    ]


def _of_kallsyms(text: str) -> list[tuple[int, int, ProfileFrame]]:
    return [
        (int(address, 16), 0, ProfileFrame(name, module or KERNEL, "module" if module else "kernel"))
        for address, name, module in _SYMBOL.findall(text)
    ]
