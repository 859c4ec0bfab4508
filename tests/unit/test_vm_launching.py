"""Launches that fail, with a shell script as QEMU; tests/guest has those that succeed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from vmdebug import guest, process
from vmdebug.errors import DeadlineError, HostError, LaunchError, UsageError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.process import ProcessRef
from vmdebug.vm import launch, runtime_directory, state


def qemu(directory: Path, end: str) -> None:
    """Put a QEMU on PATH that runs `end` instead of a guest."""
    path = directory / "qemu-system-x86_64"
    path.write_text(f"#!/bin/sh\ncase $1 in -help | -device) exit ;; esac\n{end}\n")
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of QEMU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def spec(tcp: int | None = None) -> LaunchSpec:
    return LaunchSpec(
        name="vm",
        guest="a test",
        machine=OwnMachine(),
        kernel=Kernel(arch="x86_64", image=Path("/b z"), origin="a test"),
        accel="tcg",
        tcp=tcp,
    )


def start(*, tcp: int | None = None, seconds: float = 20) -> None:
    launch(spec(tcp), bound=False, timeout=seconds)


def nothing_is_left() -> bool:
    return not runtime_directory.location().exists() or list(runtime_directory.location().iterdir()) == []


def test_a_qemu_that_ends_shows_its_command_status_and_last_words(place: Path) -> None:
    qemu(place, "for i in $(seq 30); do echo line $i; done; echo 'qemu: no such thing' >&2; exit 3")
    with pytest.raises(LaunchError, match="QEMU ended with status 3 before it answered") as caught:
        start()
    assert "-kernel '/b z'" in caught.value.detail
    lines = caught.value.detail.splitlines()
    assert lines[-2:] == ["line 30", "qemu: no such thing"]
    assert "line 5" not in lines
    assert nothing_is_left()


def test_a_qemu_that_says_nothing(place: Path) -> None:
    qemu(place, "kill -KILL $$")
    with pytest.raises(LaunchError, match="was killed by signal 9") as caught:
        start()
    assert caught.value.detail.endswith("(it wrote nothing)")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ('Failed to get "write" lock', "another VM uses that disk"),
        ('Failed to get shared \\"write\\" lock', "another VM uses that disk"),
        ("Could not access KVM kernel module: No such file", 'accel="tcg"'),
        ("cannot set up guest memory 'pc.ram': Cannot allocate memory", "memory="),
        ("something new", ""),
    ],
)
def test_known_words_have_a_hint(place: Path, words: str, hint: str) -> None:
    qemu(place, f"echo '{words}'; exit 1")
    with pytest.raises(LaunchError) as caught:
        start()
    assert hint in caught.value.hint
    assert bool(caught.value.hint) == bool(hint)


def test_a_taken_port_is_named(place: Path) -> None:
    qemu(place, "echo 'Failed to find an available port: Address already in use'; exit 1")
    with pytest.raises(UsageError, match=r"port 1234 on 127\.0\.0\.1 is taken") as caught:
        start(tcp=1234)
    assert "tcp=0" in caught.value.hint
    assert nothing_is_left()


def test_a_forwarded_port_that_is_taken_is_named(place: Path) -> None:
    rule = "tcp:127.0.0.1:8080-:80"
    qemu(place, f"echo \"-netdev user: Could not set up host forwarding rule '{rule}'\"; exit 1")
    with pytest.raises(UsageError, match=r"forward=: QEMU cannot listen on tcp port 8080 of 127\.0\.0\.1"):
        start()
    assert nothing_is_left()


def test_a_qemu_that_does_not_answer_is_ended_at_the_deadline(place: Path) -> None:
    qemu(place, "echo waiting for a disk; exec sleep 1000")
    with pytest.raises(DeadlineError, match="for QEMU to answer on QMP") as caught:
        start(seconds=0.5)
    assert caught.value.detail.endswith("waiting for a disk")
    assert nothing_is_left()


def test_ctrl_c_leaves_nothing(place: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    qemu(place, f"echo > {ready}; exec sleep 1000")

    def press() -> None:
        ready.read_text()
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        start()
    pressing.join()
    assert nothing_is_left()


def test_no_space_for_the_state_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise runtime_directory.host_error(f"write {path}", OSError(28, ""))

    monkeypatch.setattr(state, "write", full)
    qemu(place, "exec sleep 1000")
    with pytest.raises(HostError, match="No space left on device"):
        start()
    assert nothing_is_left()


LAUNCHER = """\
import sys
from pathlib import Path
from vmdebug import guest
from vmdebug.guest import LaunchSpec
from vmdebug.vm import launch
launch(guest.decode(Path(sys.argv[1]).read_bytes(), LaunchSpec), bound=False, timeout=60)
"""


def test_kill_9_of_a_launcher_under_way_leaves_nothing(place: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    qemu(place, f"echo $$ > {ready}; exec sleep 1000")
    (tmp_path / "spec.json").write_bytes(guest.encode(spec()))
    with process.spawn([sys.executable, "-c", LAUNCHER, tmp_path / "spec.json"]) as launcher:
        started = ProcessRef.of(int(ready.read_text()))
        launching = state.read_launching(runtime_directory.location() / "vm" / "launch.json")
        launcher.kill()
        launcher.wait()
    assert started is not None
    assert launching is not None
    assert launching.launcher.pid == launcher.pid
    for ref in (started, launching.guardian):
        assert ref.wait(20)
    assert nothing_is_left()
