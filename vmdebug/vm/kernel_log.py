"""Reads the kernel's messages from guest memory with QMP, including those that the console does not show.

`memsave` reads the memory of a guest that runs, is stopped or has panicked, and does not stop it. It uses the
current page tables of a CPU. With page-table isolation, a CPU in user space does not map the kernel's data,
so all CPUs are tried.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from vmdebug import arch
from vmdebug.arch import Debug
from vmdebug.channel.log import death
from vmdebug.channel.log.ringbuffer import NANOSECONDS, NotFoundError, Past, Reader, Record
from vmdebug.channel.log.trouble import Scanner, Trouble
from vmdebug.deadline import Deadline
from vmdebug.errors import QmpError, StateError
from vmdebug.kimage import symbols
from vmdebug.vm import memfd
from vmdebug.vm.state import State

if TYPE_CHECKING:
    from vmdebug.vm.qmp import Qmp

_RING = "prb"
"""Name of `static struct printk_ringbuffer *prb` in kernel/printk/printk.c."""


class RunningVm(Protocol):
    """What is needed of a `vmdebug.vm.Vm`."""

    state: State

    @property
    def name(self) -> str:
        """Its name."""

    def connected(self, *, timeout: float) -> AbstractContextManager[Qmp]:
        """Connect to QMP."""


class KernelLog:
    """Reads the messages of a VM's kernel incrementally, and finds trouble in them; a context manager.

    Args:
        vm: The VM.
    """

    def __init__(self, vm: RunningVm) -> None:
        self.death = ""
        """How the guest died, according to the messages read so far; "" if it lives."""
        self._vm = vm
        self._scanner = Scanner(stamped=True)
        self._deaths = death.Watch()
        self._reader: Reader | None = None
        self._earlier: tuple[Trouble, ...] = ()
        self._files: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        self._files = tuple(memfd.create("memory") for _ in range(_FILES))
        return self

    def __exit__(self, *_error: object) -> None:
        for each in self._files:
            os.close(each)
        self._files = ()

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The trouble in the messages read so far."""
        return (*self._earlier, *self._scanner.troubles)

    def look(self, *, deadline: Deadline) -> str:
        """Read the kernel's new messages.

        Args:
            deadline: When to give up.

        Returns:
            QEMU's run state: "running", "paused", "guest-panicked", "internal-error", …

        Raises:
            StateError: the messages cannot be found: the kernel has no vmlinux, is older than 5.10, or has
                not started.
            QmpError: no CPU maps the kernel's data.
            GuestDiedError: QEMU has ended.
            DeadlineError: it took too long.
        """
        with self._vm.connected(timeout=deadline.left("QEMU to answer")) as qmp:
            memory = _Memory(qmp, self._files)
            state = memory.begin(self._history)
            self._read(memory, last=state != "running")
        return state

    @property
    def _history(self) -> _History | None:
        """The messages of another clone of the same template; None after this guest's were read."""
        vmlinux = self._vm.state.spec.kernel.vmlinux
        return None if vmlinux is None or self._reader is not None else _HISTORIES.get(vmlinux)

    def _read(self, memory: _Memory, *, last: bool) -> None:
        if self._reader is None:
            self._begin(memory, last=last)
            return
        self._feed(self._reader.new(memory.read, last=last))

    def _begin(self, memory: _Memory, *, last: bool) -> None:
        """Read this guest's messages, without those that another clone of the template has in common."""
        vmlinux, reader = self._found(memory)
        self._feed(reader.new(memory.read, last=last))
        self._reader = reader
        history = _HISTORIES.get(vmlinux)
        if reader.since >= 0 and history is not None:
            last_common = reader.since / NANOSECONDS
            self._earlier = tuple(each for each in history.troubles if float(each.time) <= last_common)
            if reader.since == history.past.times[-1]:  # it is the same guest
                self.death = self.death or history.death
        elif reader.read is not None:
            _HISTORIES[vmlinux] = _History(reader.read, self._scanner.troubles, self.death)

    def _feed(self, records: list[Record]) -> None:
        for record in records:
            text = "".join(f"{line}\n" for line in record.lines()).encode()
            self._scanner.feed(text)
            self.death = self._deaths.feed(text) or self.death

    def _found(self, memory: _Memory) -> tuple[Path, Reader]:
        """Find the ring buffer, and return the vmlinux and a reader of it."""
        kernel = self._vm.state.spec.kernel
        if kernel.vmlinux is None:
            raise StateError(f"cannot find the messages of {self._vm.name}: it has no vmlinux")
        history = self._history
        if history is not None:
            reader = Reader(history.past.address, history.past)
            with contextlib.suppress(QmpError, NotFoundError):
                reader.probe(memory.read)
                return kernel.vmlinux, reader
        places = symbols.addresses(kernel.vmlinux, _RING)
        for slide in self._slides(kernel.vmlinux, arch.by_name(kernel.arch).debug):
            for place in places:
                reader = Reader((place + slide) & _MASK)
                with contextlib.suppress(QmpError, NotFoundError):
                    reader.probe(memory.read)
                    _SLIDES[kernel.vmlinux] = slide
                    return kernel.vmlinux, reader
        _MISSED[kernel.vmlinux] = time.monotonic()
        raise StateError(f"cannot find the messages of {self._vm.name} at the address in its vmlinux")

    def _slides(self, vmlinux: Path, facts: Debug) -> Iterator[int]:
        """Yield the possible KASLR offsets, the likely ones first."""
        yield from {_SLIDES.get(vmlinux, 0): None, 0: None}
        searched = time.monotonic() - _MISSED.get(vmlinux, -SEARCH_AGAIN_SECONDS) < SEARCH_AGAIN_SECONDS
        if "nokaslr" not in self._vm.state.spec.parameters and not self._vm.state.spec.halt and not searched:
            yield from (each * int(facts.kaslr_step, 16) for each in range(facts.kaslr_places))


_MASK = (1 << 64) - 1

_FILES = 4
"""Number of pieces of memory to read at once."""

_SLIDES: dict[Path, int] = {}
"""The last KASLR offset by vmlinux; clones have the offset of their template."""

_MISSED: dict[Path, float] = {}
"""When the messages were last not found at any offset, by vmlinux, as `time.monotonic` has it."""

SEARCH_AGAIN_SECONDS = 10.0
"""How long all offsets are not tried again: that takes up to a second, and a guest that boots has no messages
yet."""


class _History(NamedTuple):
    """The messages of the first guest with a kernel; its clones have most of them in common."""

    past: Past
    troubles: tuple[Trouble, ...]
    death: str


_HISTORIES: dict[Path, _History] = {}
"""Histories by vmlinux."""


class _Memory:
    """A guest's virtual memory.

    Args:
        qmp: The connection to its QEMU.
        files: Descriptors of the files that QEMU writes to.
    """

    def __init__(self, qmp: Qmp, files: tuple[int, ...]) -> None:
        self._qmp = qmp
        self._files = files
        self._cpu = 0
        self._known: list[tuple[int, bytes]] = []

    def begin(self, history: _History | None) -> str:
        """Return QEMU's run state, and read the memory needed first in the same round trip."""
        places = () if history is None else history.past.places
        dumps = [
            ("memsave", self._where(0, place, size, file))
            for (place, size), file in zip(places, self._files, strict=False)
        ]
        state, *done = self._qmp.execute_all([("query-status", {}), *dumps])
        for (place, size), file, answer in zip(places, self._files, done, strict=False):
            data = os.pread(file, size, 0) if answer is not None else b""
            if len(data) == size:
                self._known.append((place, data))
        return str(state["status"])

    def read(self, address: int, size: int) -> bytes:
        """Return memory, as a CPU that maps it sees it; use what `begin` has read.

        Raises:
            QmpError: no CPU maps it.
        """
        if not size:
            return b""
        for each in self._known:
            place, data = each
            if place <= address and address + size <= place + len(data):
                if place == address and len(data) == size:
                    self._known.remove(
                        each
                    )  # the ring's head, which is read again later to see whether it has moved
                return data[address - place :][:size]
        first = self._cpu
        try:
            return self._by_cpu(first, address, size)
        except QmpError:
            for cpu in range(len(self._qmp.execute("query-cpus-fast"))):
                if cpu != first:
                    with contextlib.suppress(QmpError):
                        data = self._by_cpu(cpu, address, size)
                        self._cpu = cpu
                        return data
            raise

    @staticmethod
    def _where(cpu: int, address: int, size: int, file: int) -> dict[str, object]:
        # QAPI's type is a signed number.
        signed = address - (1 << 64) if address >> 63 else address
        return {"val": signed, "size": size, "filename": memfd.path(file), "cpu-index": cpu}

    def _by_cpu(self, cpu: int, address: int, size: int) -> bytes:
        self._qmp.execute("memsave", self._where(cpu, address, size, self._files[0]))
        data = os.pread(self._files[0], size, 0)
        if len(data) != size:
            raise QmpError(f"QEMU wrote {len(data)} of {size} bytes of guest memory")
        return data
