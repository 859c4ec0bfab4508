"""The agent's program: shipped, or compiled once for each compiler; the compiler is a script here."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from vmdebug.channel.agent.program import AGENT
from vmdebug.compiler import GuestProgram
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.progress import Step

ARCH = platform.machine()
COMPILES = 'while [ "$1" != -o ]; do shift; done; echo program >"$2"; echo run >>"$0.log"'


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all of PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(GuestProgram, "shipped", lambda _self, arch: tmp_path / "shipped" / arch)
    return directory


def compiler(path: Path, name: str, script: str = COMPILES) -> Path:
    made = path / name
    made.write_text(f"#!/bin/sh\n{script}\n")
    made.chmod(0o755)
    return made


def find(into: Path, arch: str = ARCH) -> tuple[Path, list[Step]]:
    steps: list[Step] = []
    found = AGENT.find(arch, into, report=steps.append, deadline=Deadline.after(60))
    return found, steps


def test_a_shipped_program_is_used_as_it_is(path: Path, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped" / ARCH
    shipped.parent.mkdir(parents=True)
    shipped.touch()
    assert find(tmp_path / "cache") == (shipped, [])


def test_it_is_compiled_once(path: Path, tmp_path: Path) -> None:
    log = Path(f"{compiler(path, 'cc')}.log")
    first, steps = find(tmp_path / "cache")
    assert first.read_text() == "program\n"
    assert steps == [Step("compiling the guest's agent", note=ARCH)]
    assert find(tmp_path / "cache") == (first, [])
    assert log.read_text() == "run\n"
    assert [each.name for each in (tmp_path / "cache").iterdir()] == [first.name]


def test_another_compiler_compiles_it_again(path: Path, tmp_path: Path) -> None:
    made = compiler(path, "cc")
    first, _ = find(tmp_path / "cache")
    made.write_text(made.read_text() + "# changed\n")
    os.utime(made, (1, 1))
    second, steps = find(tmp_path / "cache")
    assert second != first
    assert len(steps) == 1


def test_another_architecture_needs_a_cross_compiler(path: Path, tmp_path: Path) -> None:
    compiler(path, "cc")
    with pytest.raises(HostError, match="no C compiler for m68k: none of m68k-linux-gnu-gcc, ") as caught:
        find(tmp_path / "cache", "m68k")
    assert caught.value.hint == "install one: apt install gcc-m68k-linux-gnu"
    compiler(path, "m68k-linux-musl-gcc")
    found, _ = find(tmp_path / "cache", "m68k")
    assert found.name.startswith("vmdebug-agent-m68k-")


def test_a_machine_without_a_compiler_is_told_what_to_install(path: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=f"no C compiler for {ARCH}: none of cc, gcc, clang, ") as caught:
        find(tmp_path / "cache")
    assert caught.value.hint == "install one: apt install gcc libc6-dev"


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("ld: cannot find -lc: No such file", "install a static C library: apt install libc6-dev"),
        ("agent.c:1: error: no", ""),
    ],
)
def test_a_compiler_that_fails_leaves_nothing_and_its_output_is_shown(
    path: Path, tmp_path: Path, said: str, hint: str
) -> None:
    compiler(path, "cc", f'while [ "$1" != -o ]; do shift; done; echo half >"$2"; echo "{said}" >&2; exit 1')
    with pytest.raises(HostError, match="does not compile the guest's agent") as caught:
        find(tmp_path / "cache")
    assert caught.value.hint.startswith(hint)
    assert said in caught.value.detail
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_an_error(path: Path, tmp_path: Path) -> None:
    compiler(path, "cc")
    (tmp_path / "cache").write_text("a file, and no directory")
    with pytest.raises(HostError, match=r"cannot write .*/cache/vmdebug-agent-"):
        find(tmp_path / "cache")
