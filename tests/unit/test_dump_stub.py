"""The packets of a dump's gdbstub, and which NAME is a dump."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmdebug import cli
from vmdebug.cli import dumped
from vmdebug.drgn_program import stub
from vmdebug.errors import UsageError


class Answers:
    """A stub that answers with what it was asked."""

    def answer(self, packet: str) -> str:
        return f"<{packet}>"


def exchanged(*sent: bytes) -> bytes:
    """Return what `serve` writes for some input."""
    their_end, read = os.pipe()[::-1]
    mine, write = os.pipe()
    for data in sent:
        os.write(their_end, data)
    os.close(their_end)
    stub.serve(Answers(), read, write)  # type: ignore[arg-type] # it has the one method that is called
    os.close(write)
    said = b""
    while data := os.read(mine, 4096):
        said += data
    os.close(mine)
    os.close(read)
    return said


def test_an_answer_has_its_checksum() -> None:
    assert stub.framed("OK") == b"$OK#9a"
    assert stub.framed("") == b"$#00"


def test_packets_are_acknowledged_and_answered_also_in_pieces() -> None:
    assert exchanged(b"+$g#67$qC#b4", b"+") == b"+" + stub.framed("<g>") + b"+" + stub.framed("<qC>")
    assert exchanged(b"\x03$m1", b"0,4#2a") == b"+" + stub.framed("<m10,4>")


def test_a_request_to_run_is_told_why_not() -> None:
    console = "O" + b"a dump does not run: it is the memory of one moment\n".hex()
    assert exchanged(b"$c#63") == b"+" + stub.framed(console) + stub.framed("<c>")


@pytest.mark.parametrize("packet", [b"$D;1#b0", b"$k#6b", b"$vKill;1#6e"])
def test_the_stub_ends_with_gdb(packet: bytes) -> None:
    assert b"<g>" not in exchanged(packet + b"$g#67")


def test_a_file_is_a_dump_unless_a_vm_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vmcore").touch()
    monkeypatch.setattr("vmdebug.vm.names", lambda: ["one"])
    assert dumped.path("vmcore") == Path("vmcore")
    assert dumped.path(None) is None
    assert dumped.path("one") is None
    assert dumped.path("missing/vmcore") == Path("missing/vmcore")
    monkeypatch.setattr("vmdebug.vm.names", lambda: ["vmcore"])
    assert dumped.path("vmcore") is None
    assert dumped.path("./vmcore") == Path("vmcore")


@pytest.mark.parametrize("verb", [["attach"], ["dmesg"], ["report"], ["drgn", "-e", "1"]])
def test_a_vm_has_its_own_vmlinux(runtime: Path, capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    assert cli.status_of([*verb, "--vmlinux", "x"]) == UsageError.exit_status
    assert "--vmlinux needs a dump" in capsys.readouterr().err
