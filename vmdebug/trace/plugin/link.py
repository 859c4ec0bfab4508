"""A trace's connection to the plugin: passes the request, takes the records as they come, and ends it."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, HostError, StateError, VmError
from vmdebug.trace.plugin import wire
from vmdebug.trace.plugin.wire import Request, Results, Rings

RING_BYTES = 16 << 20
"""The size of all rings together; the size of each ring is a power of two."""

_LEAST_RING = 1 << 20

CONNECT_SECONDS = 5.0
"""How long the plugin may take to greet a client, or to check a request."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """What a plugin says about its QEMU.

    Args:
        magic: A number that identifies the protocol.
        features: See `wire.REGISTERS`.
        vcpus: The number of vCPUs, including those that can be plugged in.
        api: The version of the plugin API that it was built for.
    """

    magic: int
    features: int
    vcpus: int
    api: int


def connected(path: Path, vm: str) -> tuple[socket.socket, Hello]:
    """Return a connection to the plugin of a VM, and what the plugin says about its QEMU.

    Raises:
        StateError: no plugin listens there.
        VmError: it does not speak this protocol, or has too many clients.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(CONNECT_SECONDS)
        made.connect(os.fspath(path))
        return made, _greeted(made, vm)
    except OSError as error:
        made.close()
        raise StateError(f"QEMU of {vm} has no trace plugin: {error.strerror or error}") from error
    except BaseException:
        made.close()
        raise


def _greeted(connection: socket.socket, vm: str) -> Hello:
    greeting = connection.recv(wire.HELLO.size, socket.MSG_WAITALL)
    if len(greeting) != wire.HELLO.size:
        raise VmError(f"QEMU of {vm} has too many traces", hint="end another trace first")
    hello = Hello(*wire.HELLO.unpack(greeting))
    if hello.magic != wire.MAGIC:
        raise VmError(
            f"the trace plugin in QEMU of {vm} is from another version of vmdebug",
            hint="start the VM again",
        )
    return hello


def refusal(connection: socket.socket) -> str:
    """Return why the plugin refuses a request: the rest of what it sends."""
    reason = b""
    while part := connection.recv(256):
        reason += part
    return reason.decode(errors="replace") or "no answer"


class Link:
    """A connection to the plugin of a VM; a context manager that ends the trace.

    A thread reads the records out of the rings, so the guest does not have to wait for the caller.

    Args:
        path: The plugin's socket.
        vm: The VM's name, for errors.

    Raises:
        StateError: no plugin listens there.
        VmError: it does not speak this protocol, or has too many clients.
    """

    def __init__(self, path: Path, vm: str) -> None:
        self._vm = vm
        self._rings: Rings | None = None
        self._reader: threading.Thread | None = None
        self._condition = threading.Condition()
        self._chunks: list[bytes] = []
        self._ready = self._finished = self._gone = False
        self._socket, self.hello = connected(path, vm)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, request: Request) -> None:
        """Pass a request; it takes effect when a vCPU next becomes idle or resumes.

        Raises:
            VmError: the plugin refuses it.
            HostError: there is no memory for the rings.
        """
        vcpus = self.hello.vcpus
        ring_bytes = max(_LEAST_RING, 1 << ((RING_BYTES // vcpus).bit_length() - 1))
        start, cpus_at, counts_at, rings_at = wire.layout(request, vcpus=vcpus, ring_bytes=ring_bytes)
        try:
            fd = os.memfd_create("vmdebug-trace", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, rings_at + vcpus * ring_bytes)
                memory = mmap.mmap(fd, rings_at + vcpus * ring_bytes)
                memory[: len(start)] = start
                self._rings = Rings(
                    memory,
                    cpus_at=cpus_at,
                    counts_at=counts_at,
                    rings_at=rings_at,
                    vcpus=vcpus,
                    ring_bytes=ring_bytes,
                )
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                self._socket.sendmsg([b"g"], ancillary)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(f"cannot pass a trace to QEMU of {self._vm}: {error.strerror}") from error
        self._accepted()
        self._socket.settimeout(None)
        self._reader = threading.Thread(target=self._read, name="vmdebug-trace", daemon=True)
        self._reader.start()

    def _accepted(self) -> None:
        try:
            answer = self._socket.recv(1)
            if answer == b"a":
                return
            reason = refusal(self._socket)
        except OSError as error:
            raise VmError(f"the trace plugin in QEMU of {self._vm} does not answer: {error}") from error
        raise VmError(f"the trace plugin refuses the trace: {reason}")

    def _read(self) -> None:
        """Read records until the connection ends. The plugin sends a byte when a ring has many."""
        with contextlib.suppress(OSError):
            while notices := self._socket.recv(4096):
                with self._condition:
                    self._drain()
                    self._ready |= b"r" in notices
                    self._finished |= b"s" in notices
                    self._condition.notify_all()
        with self._condition:
            self._gone = True
            self._condition.notify_all()

    def _drain(self) -> None:
        """Move the records out of the rings. The caller holds the lock."""
        assert self._rings is not None  # noqa: S101 - `begin` has made them
        found, waits = self._rings.take()
        self._chunks += found
        if waits:
            with contextlib.suppress(OSError):
                self._socket.send(b"t")

    def wait_ready(self, seconds: float) -> bool:
        """Wait until the plugin records hits, and return whether it does."""
        with self._condition:
            self._condition.wait_for(lambda: self._ready or self._gone, seconds)
            return self._ready

    @property
    def gone(self) -> bool:
        """Whether QEMU has ended."""
        return self._gone

    @property
    def results(self) -> Results:
        """What the plugin has counted."""
        assert self._rings is not None  # noqa: S101 - made by `begin`
        return self._rings.results

    def counts(self, probes: int) -> list[int]:
        """Return the number of hits of each probe, in a trace that only counts."""
        assert self._rings is not None  # noqa: S101 - made by `begin`
        return self._rings.counts(probes)

    def take(self) -> list[bytes]:
        """Return the bytes of the records since the last call."""
        with self._condition:
            self._drain()
            chunks, self._chunks = self._chunks, []
        return chunks

    def finish(self, timeout: float) -> None:
        """End the trace: the plugin writes no more records, and `take` returns the remaining ones.

        Args:
            timeout: Seconds to wait until the vCPUs have finished the records that they are writing.

        Raises:
            GuestDiedError: QEMU has ended.
            DeadlineError: a vCPU is still writing a record.
        """
        deadline = Deadline.after(timeout)
        with contextlib.suppress(OSError):
            self._socket.send(b"e")
        with self._condition:
            self._condition.wait_for(lambda: self._finished or self._gone, timeout)
            finished, gone = self._finished, self._gone
        if not finished:
            if gone:
                raise GuestDiedError(f"QEMU of {self._vm} has ended", hint="start it again")
            raise deadline.error("the vCPUs to finish their trace records")

    def close(self) -> None:
        """End the connection, and with it the trace."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._reader is not None:
            self._reader.join()
        self._socket.close()
        if self._rings is not None:
            self._rings.close()
