"""A gdbstub without a guest, which refuses what QEMU refuses under KVM: the tests do not need KVM.

See "Packets" in the appendix "Remote Protocol" of GDB's manual, and gdbstub.c of QEMU.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Mapping

TARGET = b"<target><architecture>i386:x86-64</architecture></target>"
REGISTERS = 536
"""Bytes of `g`: the core and SSE registers of x86-64."""

RIP = 16 * 8
"""Its offset in `g`: after sixteen registers."""

ANSWERS = {
    b"qSupported": b"PacketSize=1000;qXfer:features:read+",
    b"qXfer:features:read:target.xml": b"l" + TARGET,
    b"?": b"T05thread:01;",
    b"H": b"OK",
    b"qC": b"QC01",
    b"qfThreadInfo": b"m01",
    b"qsThreadInfo": b"l",
    b"qAttached": b"1",
    b"vCont?": b"vCont;c;C;s;S",
    b"z": b"OK",
    b"D": b"OK",
}


class Stub:
    """Serves one GDB.

    Args:
        listener: The socket to which GDB connects.
        answers: Answers that replace `ANSWERS`, by the start of the packet.

    Attributes:
        rip: The program counter of its CPU.
    """

    def __init__(self, listener: socket.socket, answers: Mapping[bytes, bytes]) -> None:
        self.rip = 0
        self._listener = listener
        self._answers = {**ANSWERS, **answers}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # closed before GDB connected
        with connection:
            waiting = b""
            while data := connection.recv(4096):
                if data == b"\x03":
                    connection.sendall(_packet(b"T02thread:01;"))
                *packets, waiting = re.split(rb"#[0-9a-f]{2}", waiting + data)
                for packet in packets:
                    answer = self._answer(packet.rpartition(b"$")[2])
                    connection.sendall(b"+" if answer is None else b"+" + _packet(answer))

    def _answer(self, packet: bytes) -> bytes | None:
        """Return the answer; None if the guest runs."""
        if packet.startswith(b"m"):
            return b"00" * int(packet.rpartition(b",")[2], 16)
        if packet == b"g":
            rip = self.rip.to_bytes(8, "little").hex().encode()
            return b"00" * RIP + rip + b"00" * (REGISTERS - RIP - 8)
        found = [start for start in self._answers if packet.startswith(start)]
        return self._answers[max(found, key=len)] if found else b""


def _packet(content: bytes) -> bytes:
    return b"$%s#%02x" % (content, sum(content) % 256)
