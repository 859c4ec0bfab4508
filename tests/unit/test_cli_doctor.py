"""`doctor`: its lines for what exists and what is missing, and its exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from vmdebug import cli
from vmdebug.cli import doctor
from vmdebug.cli.doctor import Check, Program

HERE = Check("gdb", "", ok=True, required=True, found="GDB 13.1")
OPTIONAL = Check("nix", "flakes", ok=False, required=False, found="not on PATH", hint="apt install nix-bin")
MISSING = Check("qemu", "", ok=False, required=True, found="not on PATH", hint="apt install qemu-system-x86")


def looked(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    def everything() -> Iterator[Check]:
        yield from checks

    monkeypatch.setattr(doctor, "everything", everything)


def test_all_is_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    looked(monkeypatch, HERE, OPTIONAL)
    assert cli.status_of(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "     ok  gdb " in out
    assert "     no  nix " in out


def test_something_required_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked(monkeypatch, HERE, MISSING)
    assert cli.status_of(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "MISSING  qemu " in out
    assert "apt install qemu-system-x86" in out


def test_quiet_tells_only_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked(monkeypatch, HERE, OPTIONAL)
    assert cli.status_of(["doctor", "-q"]) == 0
    assert capsys.readouterr().out == ""


def test_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    looked(monkeypatch, MISSING)
    assert cli.status_of(["doctor", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)[0]["hint"] == "apt install qemu-system-x86"


def test_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.program(Program("no-such-program", "nothing", "show"))
    assert (found.ok, found.required, found.hint) == (False, True, "apt install nothing")


def test_a_program_says_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path / "thing", "#!/bin/sh\necho thing 1.2; echo more\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert doctor.program(Program("thing", "thing")).found == f"thing 1.2  {tmp_path}/thing"


def test_a_program_that_fails_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path / "thing", "#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert not doctor.program(Program("thing", "thing")).ok


def test_drgn_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.drgn()
    assert (found.ok, found.required) == (True, False)

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    found = doctor.drgn()
    assert (found.ok, found.required) == (False, False)
    assert found.hint == "install it: pip install 'vmdebug[drgn]'"


def test_a_gdb_without_python_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path / "gdb", "#!/bin/sh\necho 'Scripting in Python is not supported' >&2\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = doctor.gdb()
    assert not found.ok
    assert "Python" in found.hint


@pytest.mark.parametrize(
    ("has", "found"),
    [
        ("MICommand BreakpointLocation", "GDB 13.1 with Python "),
        ("MICommand", "GDB 13.1  {path}: its Python lacks BreakpointLocation"),
        ("", "GDB 13.1  {path}: its Python lacks MICommand BreakpointLocation"),
    ],
)
def test_gdb_is_asked_for_what_is_used_of_it(
    has: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GDB with a Python module as bare as this one answers the same question."""
    (tmp_path / "gdb.py").write_text("VERSION = '13.1'\n" + "".join(f"{name} = 1\n" for name in has.split()))
    _fake(
        tmp_path / "gdb",
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport gdb\n"
        "exec(sys.argv[-1].removeprefix('python '))\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    check = doctor.gdb()
    assert check.found.startswith(found.format(path=tmp_path / "gdb"))
    assert check.ok is (len(has.split()) == 2)
    assert ("13.1 or newer" in check.hint) is not check.ok


def test_nothing_at_all_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that lacks everything it prints a list, and does not fail itself."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.status_of(["doctor"]) == 3
    assert "apt install gdb" in capsys.readouterr().out


def _fake(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
