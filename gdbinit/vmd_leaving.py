"""Detaches from the guest whenever GDB ends, also if a signal ends it while the guest runs.

GDB sends nothing to a stub whose guest runs ("Cannot execute this command while the target is running"): it
only closes the connection. QEMU then keeps the breakpoints, and the next hit stops the guest for good.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Generator

import gdb
import vmd_kgdb
import vmd_leftover_steps

_DETACH = b"$D;1#b0"
"""The packet that detaches from QEMU's first process; the CPUs are its threads."""

_OK = b"$OK#9a"

_ANSWER_SECONDS = 5.0


def watch() -> None:
    """Prepare for GDB's end and for the user's `detach`.

    The host side does this for a GDB that it starts itself.
    """
    handler = _handler()
    next(handler)
    # Before the handlers of others: it takes the KeyboardInterrupt.
    gdb.events.gdb_exiting.connect(handler.send)
    try:
        gdb.execute("show user hook-detach", to_string=True)  # keep the user's own hook
    except gdb.error:
        gdb.execute(
            "define hook-detach\npython import vmd_leftover_steps; vmd_leftover_steps.STEPS.settle()\nend"
        )


def _handler() -> Generator[None, object, None]:
    """Handle the end of GDB: `send` gets the event.

    A generator, because GDB reports SIGTERM to the first Python code that runs, as a KeyboardInterrupt. That
    is raised at the entry of a function, outside of its `try`; but in a generator, where it was suspended.
    """
    terminated = False
    try:
        yield
    except KeyboardInterrupt:
        terminated = True
    vmd_leftover_steps.STEPS.settle()
    if _runs():
        _detach()
        if terminated:
            _die_of_sigterm()
    yield


def _runs() -> bool:
    thread = gdb.selected_thread()
    return thread is not None and thread.is_valid() and thread.is_running()


def _detach() -> None:
    """Detach in place of GDB, over a connection of our own: QEMU accepts it when GDB's is closed.

    QEMU stops the guest when a client connects, and removes all breakpoints and resumes it when the client
    detaches; see `gdb_chr_event` and `handle_detach` in its gdbstub.
    """
    connection = gdb.selected_inferior().connection
    if vmd_kgdb.on() or not isinstance(connection, gdb.RemoteTargetConnection):
        return
    with contextlib.suppress(OSError):  # the guest has ended, too
        ours = _socket_to(connection.details or "")
        address = ours.getpeername()
        with socket.socket(ours.family) as stub:
            ours.shutdown(socket.SHUT_RDWR)
            stub.settimeout(_ANSWER_SECONDS)
            stub.connect(address)
            stub.sendall(_DETACH)
            answer = b""
            while _OK not in answer and (more := stub.recv(256)):
                answer += more


def _socket_to(endpoint: str) -> socket.socket:
    """Return GDB's own connection to a gdbstub.

    Args:
        endpoint: PATH or HOST:PORT.

    Raises:
        OSError: there is none.
    """
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - no Path is needed
        with contextlib.suppress(OSError):  # no socket, or not connected
            ours = socket.socket(fileno=os.dup(int(name)))
            peer = ours.getpeername()
            if endpoint == (peer if isinstance(peer, str) else f"{peer[0]}:{peer[1]}"):
                return ours
    raise ConnectionError(f"GDB is not connected to {endpoint}")


def _die_of_sigterm() -> None:
    """End as other programs do at SIGTERM: GDB would exit with status 0, as if the batch were complete."""
    import atexit  # noqa: PLC0415 - needed only here

    atexit._run_exitfuncs()  # noqa: SLF001 - this process does not return to Python's own exit
    gdb.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
