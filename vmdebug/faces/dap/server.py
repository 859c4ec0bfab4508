"""Serves the adapter on standard input and output, or on a port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from vmdebug.errors import HostError, UsageError, VmdebugError
from vmdebug.faces.dap import program
from vmdebug.faces.dap.adapter import END_SECONDS, Adapter
from vmdebug.faces.dap.client import Client
from vmdebug.faces.dap.wire import Log, MessageReader, MessageWriter

Tell = Callable[[str], None]


def on_stdio(*, gdb: str | None, log: Path | None) -> None:
    """Serve one client on standard input and output, until it has disconnected or closed its end.

    Args:
        gdb: The program of `--gdb`; None: find one.
        log: A file for all messages, or None.

    Raises:
        HostError: the log cannot be written.
        UsageError: what arrived is no message of the protocol.
    """
    # Nothing else may write to the client's stream: what is printed goes to standard error.
    stdin, stdout = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.closing(Log(log)) as written, stdin, _ended_by_sigterm():
        _serve(stdin, stdout, gdb, written)


def on_port(port: int, *, gdb: str | None, log: Path | None, tell: Tell) -> NoReturn:
    """Serve clients on a port of 127.0.0.1, one at a time, until a signal ends this process.

    Args:
        port: The port; 0: any free one.
        gdb: The program of `--gdb`; None: find one.
        log: A file for all messages, or None.
        tell: Tells the user where the port is, and of errors.

    Raises:
        HostError: the port cannot be opened, or the log cannot be written.
    """
    with contextlib.closing(Log(log)) as written, _listening(port) as listener, _ended_by_sigterm():
        tell(f"listening on 127.0.0.1:{listener.getsockname()[1]}")
        session: threading.Thread | None = None
        connection: socket.socket | None = None
        try:
            while True:
                accepted, _ = listener.accept()
                if session is not None and session.is_alive():
                    accepted.close()
                    tell("refused a second client: one session at a time")
                    continue
                connection = accepted
                session = threading.Thread(target=_on_connection, args=(accepted, gdb, written, tell))
                session.start()
        finally:
            if session is not None and connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
                session.join(END_SECONDS)


def _on_connection(connection: socket.socket, gdb: str | None, log: Log, tell: Tell) -> None:
    with connection, connection.makefile("rb") as incoming, connection.makefile("wb") as outgoing:
        try:
            _serve(incoming, outgoing, gdb, log)
        except VmdebugError as error:
            tell(str(error))


def _serve(incoming: IO[bytes], outgoing: IO[bytes], gdb: str | None, log: Log) -> None:
    client = Client(MessageWriter(outgoing, log, "adapter"), log)
    adapter = Adapter(client, lambda: program.find(gdb))
    reader = MessageReader(incoming)
    try:
        while not adapter.over and (message := reader.read()) is not None:
            log.write("client", message)
            adapter.handle(message)
            if message.get("command") == "disconnect":
                break
    finally:
        adapter.close()


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OverflowError as error:
            raise UsageError(f"there is no port {port}", hint="ports are 1 to 65535") from error
        except OSError as error:
            raise HostError(
                f"cannot listen on 127.0.0.1:{port}: {error.strerror}", hint="give another port, or 0"
            ) from error
        yield listener


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM and SIGHUP, with which editors end an adapter, end the block as Ctrl-C does."""

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, end)) for number in (signal.SIGTERM, signal.SIGHUP)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
