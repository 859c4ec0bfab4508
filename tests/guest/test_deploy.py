"""A system that the real nix builds, deployed by a fake nixos-rebuild, and debugged over kgdb."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.nixfixture import FixtureFlake, fixture_flake
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel
from vmdebug.process import Completed
from vmdebug.sources.nixos import deployments

SECONDS = 240.0
BOX = "root@box"


def vmdebug(*words: str | Path, status: int = 0) -> Completed:
    argv = [sys.executable, "-m", "vmdebug.cli", *words]
    done = process.run(argv, deadline=Deadline.after(SECONDS), check=False)
    assert done.status == status, f"{done.stdout}\n{done.stderr}"
    return done


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def flake(
    kernel: Kernel, initrd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FixtureFlake]:
    """The flake with the builtin kernel, and a fake machine to deploy to."""
    assembled = fixture_flake(kernel, initrd, tmp_path)
    for name, value in assembled.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/ssh", f'case "$*" in *readlink*) cat {tmp_path}/booted ;; esac')
    program(tmp_path / "bin/nixos-rebuild", f'echo "$*" >> {tmp_path}/calls; echo "[--sudo] [--no-reexec]"')
    (tmp_path / "booted").write_text("/nix/store/older/bzImage\n")
    yield assembled
    process.run(["chmod", "-R", "u+w", tmp_path], deadline=Deadline.after(60))
    shutil.rmtree(tmp_path / "store")


def test_what_was_deployed_is_what_is_debugged(
    flake: FixtureFlake, kernel: Kernel, runtime: Path, tmp_path: Path
) -> None:
    guest, override = f"{flake.url}#base-nixos", flake.nix_args
    done = vmdebug("deploy", guest, "--target-host", BOX, *override, "--", "-L")
    assert (tmp_path / "calls").read_text().splitlines() == [
        "--help",
        f"switch --flake {guest} --target-host {BOX} --no-reexec {' '.join(override)} -L",
    ]
    assert f"build_id  {kernel.build_id}" in done.stderr
    assert "the new kernel runs after a reboot: ssh root@box sudo reboot" in done.stderr

    known = deployments.find(BOX)
    assert known.kernel.build_id == kernel.build_id
    assert str(known.kernel.vmlinux).startswith(str(flake.store))
    process.run(["nix-collect-garbage"], deadline=Deadline.after(SECONDS))
    assert deployments.find(BOX) == known

    cable = runtime / "cable"
    vmdebug(
        *(
            "start",
            "builtin",
            "--accel",
            "tcg",
            "--name",
            "box",
            "--append",
            "kgdboc=ttyS1 kgdbwait rodata=off",
        ),
        *("--", "-chardev", f"socket,id=cable,path={cable},server=on,wait=off", "-serial", "chardev:cable"),
    )
    attached = vmdebug("attach", "--kgdb", cable, "--batch", "-ex", "bt 1")
    vmdebug("stop", "--all", "--force")
    assert "#0  kgdb_breakpoint ()" in attached.stdout


def test_the_kernel_is_the_systems_and_not_that_of_its_vm(flake: FixtureFlake, kernel: Kernel) -> None:
    guest = f"{flake.url}#trap"
    done = vmdebug("deploy", guest, "--target-host", BOX, *flake.nix_args, status=4)
    # The configuration's own kernel has symbols of another build; those of the VM's kernel would match.
    assert kernel.build_id in done.stderr
