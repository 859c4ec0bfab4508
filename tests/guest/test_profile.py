"""Profiles by the guest's own kernel, timelines of boots, and their commands."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import process, vm
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession
from vmdebug.timeline.boot import Boot
from vmdebug.trace.profile.profile import Profile

LOOP = "dd if=/dev/zero of=/dev/null bs=1 count=600000"
OURS = "grep -ls '^[.]vmdebug-samp' /proc/[0-9]*/comm; ls /run/.vmdebug-* /tmp/.vmdebug-* 2>/dev/null; true"


@pytest.fixture
def guest(builtin: LaunchSpec) -> Iterator[DebugSession]:
    """A session on the builtin guest, with two CPUs and without the plugin."""
    spec = msgspec.structs.replace(builtin, trace_ready="no", cpus=2)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as made:
        yield made


SPIN = """
volatile unsigned long sink;
__attribute__((noinline)) void spin(unsigned long n) { while (n--) sink += n; }
__attribute__((noinline)) void caller(void) { spin(20000000); sink++; }
int main(void) { caller(); return sink == 1; }
"""


def shares(profile: Profile) -> dict[str, float]:
    return {frame.name: whole / profile.total for frame, _, whole in profile.functions()}


def test_the_loop_of_dd_is_in_its_profile(guest: DebugSession) -> None:
    with guest.profile() as taken:
        guest.exec(LOOP, timeout=SECONDS, check=True)
    profile = taken.profile
    found = shares(profile)
    assert taken.collector == "the guest's kernel"
    assert found["vfs_read"] > 0.05
    assert found["ksys_write"] > 0.05
    heaviest, _ = profile.by_task()[0]
    assert heaviest.comm == "dd"
    reads = {stack: weight for stack, weight in profile.folded().items() if stack[-1].name == "vfs_read"}
    names = [each.name for each in max(reads, key=lambda stack: reads[stack])]
    assert names.index("[busybox]") < names.index("do_syscall_64") < names.index("ksys_read")
    assert guest.exec(OURS, timeout=SECONDS).stdout == ""


def test_functions_of_a_program_are_named_with_their_callers(guest: DebugSession, tmp_path: Path) -> None:
    source, program = tmp_path / "spin.c", tmp_path / "spin"
    source.write_text(SPIN)
    words = ["gcc", "-O0", "-static", "-fno-omit-frame-pointer", "-o", str(program), str(source)]
    process.run(words, deadline=Deadline.after(SECONDS))
    guest.put(program, "/tmp/spin", timeout=SECONDS)
    with guest.profile(rate=499) as taken:
        guest.exec("/tmp/spin", timeout=SECONDS, check=True)
    stacks = {tuple(each.name for each in stack): weight for stack, weight in taken.profile.folded().items()}
    spun = {stack: weight for stack, weight in stacks.items() if "spin" in stack[1:]}
    assert sum(spun.values()) > 0.5 * taken.profile.total
    heaviest = max(spun, key=lambda each: spun[each])
    assert heaviest[-3:] == ("main", "caller", "spin")
    guest.vm.pause()
    with pytest.raises(StateError, match="is stopped"):
        guest.profile()
    guest.vm.resume()


def test_the_command_writes_files_and_its_death_ends_the_sampler(guest: DebugSession, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "profile"]
    file = tmp_path / "p.json"
    done = process.run(
        [*argv, "-o", file, "--", f"{LOOP}; exit 3"], deadline=Deadline.after(SECONDS), check=False
    )
    assert done.status == 3
    profile = Profile.load(file)
    assert shares(profile)["vfs_read"] > 0
    page = tmp_path / "p.html"
    process.run([*argv, "--diff", file, file, "-o", page], deadline=Deadline.after(SECONDS))
    assert page.read_text().startswith("<!doctype html>")
    with process.start(argv, stderr=process.PIPE) as child:
        assert child.stderr is not None
        assert any(b"sampling; Ctrl-C ends it" in line for line in iter(child.stderr.readline, b""))
        found = guest.exec(OURS, timeout=SECONDS).stdout
        os.kill(child.pid, signal.SIGKILL)
    assert found != ""
    guest.exec(f'until [ -z "$({OURS})" ]; do sleep 0.1; done', timeout=SECONDS, check=True)


def test_the_timeline_of_a_boot_has_its_initcalls(tmp_path: Path) -> None:
    page, trace = tmp_path / "boot.html", tmp_path / "boot.pftrace"
    argv = [sys.executable, "-m", "vmdebug.cli", "boot-timeline", "builtin", "--json"]
    done = process.run([*argv, "-o", page, "--perfetto", trace], deadline=Deadline.after(2 * SECONDS))
    (boot,) = msgspec.json.decode(done.stdout, type=list[Boot])
    took = {step.name: step.seconds for step in boot.steps if step.kind == "initcall"}
    assert took["inet_init"] > 0
    assert 0 < boot.marks["run /init"] <= boot.end
    assert "inet_init" in page.read_text()
    assert b"inet_init" in trace.read_bytes()
