"""Profiles by the plugin: of a loop, a program, and a boot from the reset vector."""

from __future__ import annotations

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from tests.guest.test_profile import SPIN, shares
from vmdebug import process, vm
from vmdebug.deadline import Deadline
from vmdebug.errors import VmError
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession

LOOP = "dd if=/dev/zero of=/dev/null bs=1 count=200000"


def test_the_loop_of_dd_is_in_its_profile(builtin: LaunchSpec) -> None:
    spec = msgspec.structs.replace(builtin, cpus=2)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as session:
        session.exec("true", timeout=SECONDS)
        with session.profile(period=100_003) as taken:
            session.exec(LOOP, timeout=SECONDS, check=True)
            with pytest.raises(VmError, match="a profile is being taken already"), session.profile():
                pass
        profile = taken.profile
        assert (taken.collector, profile.unit, profile.period) == ("the plugin", "instructions", 100_003)
        assert profile.total > 50_000_000
        found = shares(profile)
        assert found["vfs_read"] > 0.05
        assert found["ksys_write"] > 0.05
        heaviest, weight = profile.by_task()[0]
        assert heaviest.comm == "dd"
        assert weight > 0.8 * profile.total
        reads = {stack: weight for stack, weight in profile.folded().items() if stack[-1].name == "vfs_read"}
        names = [each.name for each in max(reads, key=lambda stack: reads[stack])]
        assert names.index("[busybox]") < names.index("do_syscall_64") < names.index("ksys_read")
        # The guest's kernel can still be asked, and takes other units.
        with session.profile(by="guest") as other:
            session.exec(LOOP, timeout=SECONDS, check=True)
        assert other.profile.unit in ("ns", "cycles")


def test_functions_of_a_program_are_named_with_their_callers(
    session: DebugSession, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = tmp_path_factory.mktemp("spin")
    source, program = made / "spin.c", made / "spin"
    source.write_text(SPIN)
    words = ["gcc", "-O0", "-static", "-fno-omit-frame-pointer", "-o", str(program), str(source)]
    process.run(words, deadline=Deadline.after(SECONDS))
    session.put(program, "/tmp/spin", timeout=SECONDS)
    with session.profile(by="plugin") as taken:
        session.exec("/tmp/spin", timeout=SECONDS, check=True)
    stacks = {tuple(each.name for each in stack): weight for stack, weight in taken.profile.folded().items()}
    spun = {stack: weight for stack, weight in stacks.items() if "spin" in stack[1:]}
    assert sum(spun.values()) > 0.5 * taken.profile.total
    assert max(spun, key=lambda each: spun[each])[-3:] == ("main", "caller", "spin")


def test_a_boot_is_profiled_from_the_reset_vector(builtin: LaunchSpec) -> None:
    spec = msgspec.structs.replace(builtin, halt=True)
    with DebugSession(vm.launch(spec, bound=True, timeout=SECONDS), owned=True) as session:
        with session.profile(period=100_003) as taken:
            assert session.vm.shell.wait(Deadline.after(SECONDS)).largest is None
        assert session.vm.status() == "paused"
    found = shares(taken.profile)
    assert found["start_kernel"] > 0.05
    assert found["do_one_initcall"] > 0.01
    assert "user programs have no names: the guest was stopped when the profile began" in taken.profile.notes
