"""The commands that read the kernel's log: `dmesg`, and `log --decode`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import cli_doubles
from vmdebug import cli, vm
from vmdebug.errors import StateError, UsageError
from vmdebug.guest import Kernel
from vmdebug.kimage import Dwarf
from vmdebug.vm.guest_status import Status


def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: Status = "running") -> vm.Vm:
    machine = cli_doubles.machine("one", status, directory=tmp_path)
    machine.rundir.path.mkdir()
    monkeypatch.setattr("vmdebug.vm.find", lambda _name=None, **_: machine)
    return machine


def test_before_its_first_instruction_a_guest_has_no_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(monkeypatch, tmp_path, "halted")
    assert cli.status_of(["dmesg"]) == StateError.exit_status
    assert "no log yet" in capsys.readouterr().err


@pytest.mark.parametrize("version", [5, 0])
def test_a_log_is_decoded_by_its_own_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], version: int
) -> None:
    machine = runs(monkeypatch, tmp_path)
    machine.rundir.console_log.write_bytes(b"f+0x1/0x2 \xff\r\n")

    def decode(text: str, kernel: Kernel, _deadline: object) -> str:
        assert kernel == cli_doubles.KERNEL
        return text.replace("0x2", "0x2 (a.c:1)")

    monkeypatch.setattr("vmdebug.debugger.decode.decode", decode)
    monkeypatch.setattr("vmdebug.kimage.dwarf", lambda _vmlinux: Dwarf(version=version))
    assert cli.status_of(["log", "--decode"]) == 0
    said = capsysbinary.readouterr()
    assert said.out == b"f+0x1/0x2 (a.c:1) \xff\r\n"
    assert (b"note: no source lines" in said.err) == (version == 0)


def test_what_goes_on_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(monkeypatch, tmp_path)
    assert cli.status_of(["log", "--decode", "-f"]) == UsageError.exit_status
    assert "whole log" in capsys.readouterr().err
