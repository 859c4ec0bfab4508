"""`deploy`, with fake ssh and nixos-rebuild on PATH that record their arguments."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from vmdebug import cli

BOX = "brendan@192.168.2.3"
OPTIONS = "-o BatchMode=yes -o ConnectTimeout=10"


class StandIn:
    """Make a program on PATH.

    Args:
        directory: The first directory on PATH.
        name: The name of the program.
        does: The rest of its shell script.
    """

    def __init__(self, directory: Path, name: str, does: str) -> None:
        self._log = directory / f"{name}.log"
        program = directory / name
        program.write_text(f'#!/bin/sh\necho "$*" >> {self._log}\n{does}\n')
        program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("NIX_SSHOPTS", raising=False)
    return tmp_path


def test_a_dry_run_prints_what_can_be_pasted_and_asks_nobody(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ssh = StandIn(path, "ssh", "exit 1")
    rebuild = StandIn(path, "nixos-rebuild", 'echo "nixos-rebuild [--sudo] [--use-remote-sudo]"')
    words = ["deploy", f"{path}#box", "--target-host", BOX, "--boot", "--dry-run", "--", "-L"]
    assert cli.status_of(words) == 0
    asks, deploys = map(shlex.split, capsys.readouterr().out.replace("\\\n", "").splitlines())
    check = shlex.join(["sh", "-c", "test -e /etc/NIXOS || exit 90; sudo -n true || exit 91"])
    assert asks == ["ssh", *OPTIONS.split(), BOX, "--", check]
    assert deploys == [
        *(f"NIX_SSHOPTS={OPTIONS}", f"{path}/nixos-rebuild", "boot", "--flake", f"{path}#box"),
        *("--target-host", BOX, "--sudo", "-L"),
    ]
    assert ssh.calls == []
    assert rebuild.calls == ["--help"]


def test_a_machine_that_refuses_is_found_out_before_anything_is_built(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    StandIn(path, "ssh", 'echo "brendan@192.168.2.3: Permission denied (publickey)." >&2; exit 255')
    rebuild = StandIn(path, "nixos-rebuild", "")
    assert cli.status_of(["deploy", f"{path}#box", "--target-host", BOX]) == 3
    said = capsys.readouterr().err
    assert f"vmdebug: {BOX} does not accept a login without a password" in said
    assert "ssh-copy-id brendan@192.168.2.3" in said
    assert "Permission denied (publickey)." in said
    assert rebuild.calls == []


def test_what_is_no_system_is_refused_before_anybody_is_asked(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ssh = StandIn(path, "ssh", "")
    assert cli.status_of(["deploy", "builtin", "--target-host", BOX]) == 2
    assert "builtin is not a NixOS system of a flake" in capsys.readouterr().err
    assert ssh.calls == []


class TestFacts:
    FOUND = '{ boot.initrd.availableKernelModules = [ "nvme" ]; }'

    @pytest.fixture
    def ssh(self, path: Path) -> StandIn:
        return StandIn(path, "ssh", f"echo '{self.FOUND}'")

    def test_they_are_printed_with_how_they_are_made(
        self, ssh: StandIn, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.status_of(["deploy", "--target-host", BOX, "--facts"]) == 0
        made = f"# Made on {BOX} by: nixos-generate-config --show-hardware-config"
        assert capsys.readouterr().out == f"{made}\n{self.FOUND}\n"
        assert ssh.calls == [f"{OPTIONS} {BOX} -- sudo -n nixos-generate-config --show-hardware-config"]

    def test_they_are_written_to_a_file(self, ssh: StandIn, path: Path) -> None:
        file = path / "box-hardware-configuration.nix"
        words = ["deploy", "--target-host", "root@box", "--facts", "-o", str(file)]
        assert cli.status_of(words) == 0
        assert file.read_text().endswith(f"{self.FOUND}\n")
        assert ssh.calls == [f"{OPTIONS} root@box -- nixos-generate-config --show-hardware-config"]

    def test_a_file_that_cannot_be_written(
        self, ssh: StandIn, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["deploy", "--target-host", BOX, "--facts", "-o", str(path / "none" / "file")]
        assert cli.status_of(words) == 3
        assert "cannot write" in capsys.readouterr().err
        assert ssh.calls != []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--boot", "--test"], "--boot and --test exclude each other"),
        (["-o", "file"], "-o needs --facts"),
    ],
)
def test_words_that_do_not_go_together(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["deploy", "--target-host", BOX, *words]) == 2
    assert said in capsys.readouterr().err
