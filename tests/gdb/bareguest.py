"""A guest without a kernel: QEMU runs a few C functions from its reset vector."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.process import ProcessRef


def soon() -> Deadline:
    return Deadline.after(60)


class Bare:
    """QEMU with the program, halted at its reset vector."""

    def __init__(self, program: Path, directory: Path) -> None:
        self.endpoint = directory / "gdb"
        # Both sockets listen before QEMU starts, so that no test has to wait for them.
        with _listening(self.endpoint) as gdb, _listening(directory / "qmp") as qmp:
            self._child = process.start(
                argv(program, gdb.fileno(), qmp.fileno()), pass_fds=(gdb.fileno(), qmp.fileno())
            )
        self._qmp = socket.socket(socket.AF_UNIX)
        self._qmp.connect(os.fspath(directory / "qmp"))
        self._lines = self._qmp.makefile("rwb")
        self._lines.readline()
        self.qmp("qmp_capabilities")

    @property
    def process(self) -> ProcessRef:
        found = ProcessRef.of(self._child.pid)
        assert found is not None
        return found

    def qmp(self, command: str) -> Any:
        self._lines.write(json.dumps({"execute": command}).encode() + b"\n")
        self._lines.flush()
        for line in self._lines:
            answer = json.loads(line)
            if "event" not in answer:
                return answer["return"]
        raise AssertionError("QEMU has gone")

    def status(self) -> str:
        return str(self.qmp("query-status")["status"])

    def close(self) -> None:
        self._lines.close()
        self._qmp.close()
        process.end_group(self._child)


def argv(program: Path, gdb: int, qmp: int) -> list[str]:
    return [
        "qemu-system-x86_64",
        *("-S", "-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-m", "32", "-smp", "2"),
        *("-kernel", str(program)),
        *("-chardev", f"socket,id=gdb0,fd={gdb},server=on,wait=off", "-gdb", "chardev:gdb0"),
        *("-chardev", f"socket,id=qmp0,fd={qmp},server=on,wait=off", "-qmp", "chardev:qmp0"),
    ]


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()
    return listener
