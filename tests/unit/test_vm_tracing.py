"""Whether QEMU loads the plugin that collects traces: QEMU and the C compiler are scripts here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.guest_options import TraceReady
from vmdebug.progress import silent
from vmdebug.trace.plugin import binary
from vmdebug.vm import tracing
from vmdebug.vm.argv import RealAccel
from vmdebug.vm.features import Features
from vmdebug.vm.tracing import Tracing

COMPILES = 'while [ "$1" != -o ]; do api=${1#-DAPI=}; shift; done; echo "$api" >"$2"'
WITH = Features(version="10.0.13", plugins=True)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "cc", COMPILES)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(binary, "SHIPPED", tmp_path / "shipped")


def qemu(tmp_path: Path, *, accepts: int, features: int) -> Path:
    """Return a QEMU that loads the plugin for one version of the API, and logs its arguments."""
    text = f"""
echo "$*" >> {tmp_path}/asked
plugin=${{2%%,*}}
read api < "$plugin"
[ "$api" = {accepts} ] && echo "vmdebug-plugin $api {features} 0 9"
"""
    return script(tmp_path / "qemu", text)


def choose(
    emulator: Path,
    ready: TraceReady = "auto",
    *,
    features: Features = WITH,
    accel: RealAccel = "tcg",
    own_accel: bool = True,
) -> Tracing:
    spec = LaunchSpec(
        name="vm",
        guest="a test",
        machine=OwnMachine(),
        kernel=Kernel(arch="x86_64", image=Path("/bzImage"), origin="a test"),
        trace_ready=ready,
    )
    return tracing.choose(
        spec,
        qemu=emulator,
        features=features,
        accel=accel,
        own_accel=own_accel,
        report=silent,
        deadline=Deadline.after(60),
    )


def test_a_qemu_that_reads_registers_loads_it(tmp_path: Path) -> None:
    emulator = qemu(tmp_path, accepts=4, features=3)
    for _ in range(2):
        found = choose(emulator)
        assert found.untraceable == ""
        assert found.plugin is not None
        assert found.plugin.read_text() == "4\n"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2  # versions 7 and 4, once each
    assert asked[1].endswith(",probe=on -machine none -display none")


def test_an_older_one_loads_it_on_request_only(tmp_path: Path) -> None:
    emulator = qemu(tmp_path, accepts=1, features=0)
    why = "QEMU 7.2.22's plugins cannot read registers; 9.2 or newer can"
    old = Features(version="7.2.22", plugins=True)
    assert choose(emulator, features=old) == Tracing(untraceable=why)
    asked = choose(emulator, "yes", features=old)
    assert (asked.plugin is not None, asked.untraceable) == (True, why)


@pytest.mark.parametrize(
    ("features", "accel", "own_accel", "why"),
    [
        (WITH, "kvm", True, "the plugin that collects traces needs the accelerator TCG, not KVM"),
        (WITH, "tcg", False, "needs the accelerator TCG, and the runner chooses one itself"),
        (Features(version="8.0"), "tcg", True, "QEMU 8.0 loads no plugins"),
        (Features(), "tcg", True, "the QEMU of the runner loads no plugins"),
        (WITH, "tcg", True, "QEMU 10.0.13 accepts no version of its plugin API that vmdebug has"),
    ],
)
def test_why_there_is_none(
    tmp_path: Path, features: Features, accel: RealAccel, own_accel: bool, why: str
) -> None:
    emulator = qemu(tmp_path, accepts=99, features=3)
    found = choose(emulator, features=features, accel=accel, own_accel=own_accel)
    assert found.plugin is None
    assert why in found.untraceable
    with pytest.raises(HostError) as raised:
        choose(emulator, "yes", features=features, accel=accel, own_accel=own_accel)
    assert why in raised.value.message


def test_no_is_no(tmp_path: Path) -> None:
    found = choose(tmp_path / "none", "no")
    assert found == Tracing(untraceable='the VM was started with trace_ready="no"')


def test_without_a_compiler_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = qemu(tmp_path, accepts=4, features=3)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "no C compiler for" in choose(emulator).untraceable
