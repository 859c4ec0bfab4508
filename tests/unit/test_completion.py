"""The completions of the package, in real shells."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pexpect
import pytest

from tests.fixtures.transcripts import ROOT
from vmdebug import process
from vmdebug.deadline import Deadline

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import share

SECONDS = 60


@pytest.fixture
def shell_env(tmp_path: Path) -> dict[str, str]:
    """An environment with `vmdebug` on PATH, and nothing of the user's shells."""
    program = tmp_path / "bin" / "vmdebug"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vmdebug.cli "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    home = str(tmp_path)
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "HOME": home,
        "ZDOTDIR": home,
        "TERM": "xterm",
    }


def written(shell: str, directory: Path) -> Path:
    path = directory / share.COMPLETIONS[shell]
    path.parent.mkdir(parents=True)
    path.write_text(share.completion(shell))
    return path


@pytest.mark.parametrize(
    ("shell", "argv", "setup"),
    [
        ("bash", ["bash", "--norc", "--noprofile", "-i"], "PS1='ready''> '; . {path}"),
        (
            "zsh",
            ["zsh", "-f", "-i"],
            "PS1='ready''> '; fpath=({path.parent} $fpath); autoload -U compinit; compinit -u -D",
        ),
    ],
)
def test_tab_completes_a_verb(
    shell: str, argv: list[str], setup: str, tmp_path: Path, shell_env: dict[str, str]
) -> None:
    path = written(shell, tmp_path)
    child: pexpect.spawn[str] = pexpect.spawn(
        argv[0], argv[1:], env=shell_env, encoding="utf-8", timeout=SECONDS, dimensions=(40, 200)
    )
    with child:
        child.sendline(setup.format(path=path))
        child.expect_exact("ready> ")
        child.send("vmdebug doc\t")
        child.expect("vmdebug doc.*?tor")
        child.send("\x15exit\n")
        child.expect(pexpect.EOF)


def test_fish_completes_a_verb_and_an_option(tmp_path: Path, shell_env: dict[str, str]) -> None:
    path = written("fish", tmp_path)

    def completed(line: str) -> list[str]:
        asked = f"source {shlex.quote(str(path))}; complete -C {shlex.quote(line)}"
        done = process.run(
            ["fish", "--no-config", "-c", asked], env=shell_env, deadline=Deadline.after(SECONDS)
        )
        return [found.partition("\t")[0] for found in done.stdout.splitlines()]

    assert "doctor" in completed("vmdebug do")
    assert "--halt" in completed("vmdebug start --ha")
