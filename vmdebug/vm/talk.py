"""A few QMP commands in a row and what they lead to, without qemu.qmp's event loop.

A clone is made of six commands and one event, in less time than asyncio takes to be
imported. See "Protocol Specification" of docs/interop/qmp-spec.txt.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmdebug.deadline import Deadline
from vmdebug.errors import QmpError
from vmdebug.process import ProcessRef
from vmdebug.vm import dial


@contextlib.contextmanager
def talk(path: Path, *, process: ProcessRef, deadline: Deadline) -> Iterator[Talk]:
    """Connect to a QMP socket, and leave it at the end.

    Args:
        path: The socket; it serves one client at a time.
        process: QEMU.
        deadline: For all that is said.

    Raises:
        NoListenerError: nobody listens there.
        GuestDiedError: QEMU has ended.
        DeadlineError: no answer came.
    """
    with dial.dial(path, what=f"QEMU to answer on {path}", deadline=deadline) as dialled:
        talking = Talk(dialled, path, process, deadline)
        talking.greet()
        yield talking


class Talk:
    """An open conversation; `talk` makes one."""

    def __init__(self, dialled: socket.socket, path: Path, process: ProcessRef, deadline: Deadline) -> None:
        self._dialled = dialled
        self._path = path
        self._process = process
        self._deadline = deadline
        self._lines = dial.Lines(dialled, path, process, f"QEMU to answer on {path}", deadline)
        self._events: list[dict[str, Any]] = []

    def greet(self) -> None:
        """Shake hands; for `talk`."""
        self._read()
        self.execute("qmp_capabilities")

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, fds: Sequence[int] = ()
    ) -> Any:
        """Execute a command and return what it returns.

        Args:
            command: Its name in the QMP reference.
            arguments: Its arguments.
            fds: Descriptors handed over with it, for `getfd` and `add-fd`.

        Raises:
            QmpError: QEMU refused it.
            GuestDiedError: QEMU has ended.
            DeadlineError: no answer came.
        """
        words = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        line = json.dumps(words).encode() + b"\n"
        try:
            socket.send_fds(self._dialled, [line], list(fds)) if fds else self._dialled.sendall(line)
        except ConnectionError as error:
            raise dial.lost(self._path, self._process, f"during {command}") from error
        while "return" not in (answer := self._read()):
            if "error" in answer:
                raise QmpError(f"QEMU refused {command}: {answer['error']['desc']}", detail=json.dumps(words))
            self._events.append(answer)
        return answer["return"]

    def event(self, wanted: Callable[[str, Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Return the data of the next event that is wanted; others before it are dropped.

        Args:
            wanted: Says so of an event's name and data.

        Raises:
            GuestDiedError: QEMU ended instead.
            DeadlineError: none came.
        """
        while True:
            told = self._events.pop(0) if self._events else self._read()
            data: Mapping[str, Any] = told.get("data", {})
            if wanted(told.get("event", ""), data):
                return data

    def _read(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self._lines.read())
        return read
