"""A guest that prints without end: the log keeps its end, and everything that reads it goes on."""

from __future__ import annotations

import functools
import sys

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import process
from vmdebug.channel.log import kept
from vmdebug.channel.log.watcher import Watcher
from vmdebug.deadline import Deadline
from vmdebug.guest import LaunchSpec
from vmdebug.vm import Vm, launch
from vmdebug.vm.guardian import Guardian

KEPT = 100_000
PRINTED = 800_000
WORDS = "a line of no interest"


def removed(vm: Vm) -> int:
    """Wait until the start of the log was removed, and return the size of that part."""
    for _ in Deadline.after(SECONDS).pauses("the start of the log to be removed"):
        if dropped := kept.read(vm.rundir.console_log).dropped:
            return dropped
    raise AssertionError


def test_the_log_keeps_its_end_and_trouble_is_found_after_it(
    builtin: LaunchSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = functools.partialmethod(Guardian.bound, size=KEPT, seconds=0.2)
    monkeypatch.setattr(Guardian, "bound", often)
    spec = msgspec.structs.replace(builtin, name="chatty")
    log = [sys.executable, "-m", "vmdebug.cli", "log", "chatty"]
    with launch(spec, bound=True, timeout=SECONDS) as vm, Watcher(vm.rundir.console_log) as watcher:
        vm.exec("true", timeout=SECONDS)
        with process.spawn([*log, "-f"], stdout=process.PIPE) as follower:
            assert follower.stdout is not None
            vm.exec(f"yes '{WORDS}' | head -c {PRINTED} >/dev/ttyS0", timeout=SECONDS, check=True)
            assert removed(vm) > PRINTED // 2
            assert 512 * vm.rundir.console_log.stat().st_blocks < PRINTED // 2
            assert watcher.poll() == ()
            vm.exec("modprobe lkdtm; echo WARNING >/sys/kernel/debug/provoke-crash/DIRECT", timeout=SECONDS)
            (trouble,) = watcher.wait(Deadline.after(SECONDS))
            assert trouble.kind == "warn"
            assert any(b"WARNING: CPU" in line for line in iter(follower.stdout.readline, b""))
        shown = process.run(log, deadline=Deadline.after(SECONDS))
    assert "lkdtm_WARNING" in shown.stdout
    assert shown.stdout.startswith(WORDS)
    assert "older bytes were removed" in shown.stderr
