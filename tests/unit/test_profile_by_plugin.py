"""Profiles by the plugin: when it samples, what a sample's program puts, and what becomes of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec
import pytest

from tests.unit.test_trace_plugin import Qemu, emulator, qemu
from vmdebug import arch, profiling
from vmdebug.errors import StateError, UsageError, VmError
from vmdebug.trace.expressions.generate import Facts
from vmdebug.trace.expressions.kernel_facts import Addresses
from vmdebug.trace.expressions.operations import Program
from vmdebug.trace.plugin import wire
from vmdebug.trace.plugin.link import Link
from vmdebug.trace.plugin.wire import Place, Request
from vmdebug.trace.profile import by_plugin, samples
from vmdebug.trace.profile.by_plugin import PluginSampler
from vmdebug.trace.profile.raw import Collected, Mapped, RawSample
from vmdebug.trace.profile.samples import Taken
from vmdebug.trace.unwinding.stack import Frame, Stack

__all__ = ["emulator", "qemu"]  # fixtures

X86_64 = arch.by_name("x86_64")
KERNEL, USER = 0xFFFF_FFFF_8100_0000, 0x40_1000
PER_CPU, TASK, STACK_AT, BYTES = 0xFFFF_8880_0001_0000, 0xFFFF_8880_0002_0000, 0xFFFF_8880_0003_0000, 0x400
FRAMES = 0x7FFF_0000
WHERE = Addresses(current=0x100, pid=0x10, tgid=0x14, comm=0x20, stack=0x30, mm=0x38)


def words(*numbers: int) -> str:
    return struct.pack(f"<{len(numbers)}Q", *numbers).hex()


@pytest.fixture
def guest(qemu: Qemu) -> Qemu:
    """A vCPU with a task, its stack of the kernel with the registers of user space, and frames there."""
    task = struct.pack("<16xii8x16sQQ", 7, 5, b"worker", STACK_AT, 0x1234)
    qemu("mem", f"{PER_CPU + 0x100:x}", words(TASK))
    qemu("mem", f"{TASK:x}", task.hex())
    registers = [0] * 21
    registers[X86_64.debug.pt_regs.index("rip")] = USER + 0x20
    registers[X86_64.debug.pt_regs.index("rbp")] = FRAMES
    qemu("mem", f"{STACK_AT + BYTES - 256:x}", words(*[0xAA] * 11, *registers))
    qemu("mem", f"{FRAMES:x}", words(FRAMES + 0x40, USER + 0x100))
    qemu("mem", f"{FRAMES + 0x40:x}", words(FRAMES, USER + 0x200))
    for address in (KERNEL, USER):
        qemu("insn", f"{address:x}", "90")
    return qemu


def requested(period: int) -> Request:
    registers: list[str] = []
    program = Program(registers, bytearray())
    code = samples._sample(program, WHERE, Facts(row=X86_64, slide=0), BYTES)
    return Request(
        probes=1,
        places=(Place(address=0, kind=wire.SAMPLE, code=code),),
        registers=(*registers, "rsp", "rax"),
        period=period,
    )


def callers(stack: Stack) -> Iterator[Frame]:
    yield Frame(stack.pc, stack.sp, stack.bp, exact=True)
    for start, data in stack.parts:
        yield Frame(struct.unpack_from("<Q", data)[0], start, 0)


def test_every_so_many_instructions_of_a_vcpu_are_a_sample(guest: Qemu) -> None:
    with Link(guest.path, "vm") as link:
        assert link.hello.features & wire.SAMPLES
        link.begin(requested(10))
        guest("pause")
        assert link.wait_ready(5)
        guest.reg("gs_base", 0)
        guest.reg("k_gs_base", PER_CPU)
        guest.reg("rbp", FRAMES)
        guest.run(USER, 25)
        guest.run(USER, 9, cpu=1)
        guest.run(USER, 5)
        guest.reg("gs_base", PER_CPU)
        guest.reg("rsp", STACK_AT + BYTES - 256)
        guest.run(KERNEL, 10)
        found = [each.sample for each in samples.taken(link.take(), callers, 10)]
    seen = {(each.cpu, each.pid, each.tid, each.comm, each.weight) for each in found}
    assert seen == {(0, 5, 7, "worker", 10)}
    in_user = RawSample(0, 0, 5, 7, "worker", (), (USER, USER + 0x100, USER + 0x200), 10)
    in_kernel = RawSample(0, 0, 5, 7, "worker", (KERNEL, 0xAA), (USER + 0x20, USER + 0x100, USER + 0x200), 10)
    assert [each._replace(time=0) for each in found] == [in_user] * 3 + [in_kernel]


def test_a_thread_of_the_kernel_has_no_user_space_and_an_early_boot_no_task(guest: Qemu) -> None:
    with Link(guest.path, "vm") as link:
        link.begin(requested(1))
        guest("pause")
        guest.reg("gs_base", 0)
        guest.run(KERNEL)
        guest("mem", "ffff888000050100", words(TASK + 0x1000))
        guest("mem", f"{TASK + 0x1000:x}", struct.pack("<16xii8x16sQQ", 0, 0, b"", STACK_AT, 0).hex())
        guest.reg("gs_base", 0xFFFF_8880_0005_0000)
        guest.run(KERNEL)
        early, idle = (each.sample for each in samples.taken(link.take(), callers, 1))
    assert (early.tid, early.comm, early.kernel, early.user) == (-1, "", (KERNEL,), ())
    assert (idle.tid, idle.pid, idle.comm, idle.user) == (0, 0, "swapper/0", ())


def test_one_profile_at_a_time_beside_traces(guest: Qemu) -> None:
    with Link(guest.path, "vm") as first, Link(guest.path, "vm") as second, Link(guest.path, "vm") as third:
        first.begin(requested(10))
        guest("pause")
        with pytest.raises(VmError, match="a profile is being taken already"):
            second.begin(requested(10))
        mixed = msgspec.structs.replace(requested(10), period=0)
        with pytest.raises(VmError, match="a place is not valid"):
            third.begin(mixed)
    with Link(guest.path, "vm") as again:
        again.begin(requested(10))


class Machine:
    """A guest that runs, or not."""

    def __init__(self, *, running: bool) -> None:
        self.running = running
        self.did: list[str] = []

    def resume(self) -> None:
        self.did.append("resume")
        self.running = True

    def pause(self) -> None:
        self.did.append("pause")
        self.running = False

    def nudge(self) -> None:
        self.did.append("nudge")


class Processes:
    """What a guest tells about its processes."""

    ours = (44,)

    def __init__(self, asked: list[tuple[int, int, int]]) -> None:
        self.asked = asked
        self.closed = False

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> Collected:
        return Collected(
            samples=[], unit="ns", period=0, seconds=0, kallsyms="ffff t x\t[brd]", mapping=self._mapping,
            read_file=lambda _pid, _path: b"ELF", notes=("of the guest",),
        )  # fmt: skip

    def close(self) -> None:
        self.closed = True

    def _mapping(self, pid: int, address: int, time: int) -> Mapped | None:
        self.asked.append((pid, address, time))
        return Mapped(0, 1 << 40, 0, "/bin/x")


def sampler(
    path: Path, machine: Machine, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> PluginSampler:
    """Return a sampler whose kernel is made up: `cpu_startup_entry` is at KERNEL + 0x100."""

    class Kernel:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

    class Backtraces:
        def __init__(self, *_: object) -> None: ...

        frames = staticmethod(callers)

    monkeypatch.setattr(by_plugin, "Kernel", Kernel)
    monkeypatch.setattr(by_plugin, "Backtraces", Backtraces)
    monkeypatch.setattr("vmdebug.kimage.symbols.sized", lambda _vmlinux, _name: ((KERNEL + 0x100, 0x40),))
    return PluginSampler(
        path, "vm", machine, vmlinux=Path("/none"), row=X86_64, slide=0, modules=lambda: (),
        processes=lambda: processes, request=requested(10_000), idle=False, timeout=5.0,
    )  # fmt: skip


def test_a_stopped_guest_runs_while_it_is_sampled_and_its_processes_stay_unknown(
    guest: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(running=False)

    def resume() -> None:
        machine.did.append("resume")
        machine.running = True
        guest("pause")

    monkeypatch.setattr(machine, "resume", resume)
    made = sampler(guest.path, machine, Processes([]), monkeypatch)
    made.start()
    guest.reg("gs_base", PER_CPU)
    guest.run(KERNEL, 20_000)
    collected = made.stop()
    made.close()
    assert machine.did == ["resume", "pause"]
    assert (len(collected.samples), collected.unit, collected.period) == (2, "instructions", 10_000)
    assert collected.mapping(1, 2, 3) is None
    assert collected.notes == ("user programs have no names: the guest was stopped when the profile began",)


def test_ours_and_idle_cpus_are_left_out_and_the_guest_names_user_space(
    guest: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    machine, processes = Machine(running=True), Processes(asked)
    monkeypatch.setattr(machine, "nudge", lambda: guest("pause"))
    made = sampler(guest.path, machine, processes, monkeypatch)
    made.start()
    kinds: Sequence[tuple[int, tuple[int, ...]]] = (
        (7, (KERNEL,)), (0, (KERNEL, KERNEL + 0x120)), (0, (KERNEL,)), (44, (KERNEL,)),
    )  # fmt: skip
    found = [
        Taken(RawSample(10 * n, 0, pid, pid, "", stack, (), 10_000), clock=1000 * n)
        for n, (pid, stack) in enumerate(kinds, 1)
    ]
    monkeypatch.setattr(samples, "taken", lambda *_: iter(found))
    collected = made.stop()
    made.close()
    assert [(each.pid, each.kernel) for each in collected.samples] == [(7, (KERNEL,)), (0, (KERNEL,))]
    assert "1 samples of vmdebug's own programs in the guest are left out" in collected.notes
    assert "of the guest" in collected.notes
    assert collected.kallsyms == "ffff t x\t[brd]"
    for host in (5, 10, 25):
        collected.mapping(7, 0x10, host)
    assert [time for _, _, time in asked] == [1 << 63, 10_001_000, 10_002_000]
    assert processes.closed


def test_a_guest_that_cannot_tell_is_noted(guest: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(running=True)
    monkeypatch.setattr(machine, "nudge", lambda: guest("pause"))
    made = sampler(guest.path, machine, Processes([]), monkeypatch)

    def refuse() -> Processes:
        raise StateError("the guest has no agent")

    monkeypatch.setattr(made, "_make", refuse)
    made.start()
    assert made.stop().notes == ("user programs have no names: the guest has no agent",)
    made.close()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("perf", None, "auto", by_plugin.PERIOD), "no collector 'perf'"),
        (("auto", 0, "auto", by_plugin.PERIOD), "rate=0"),
        (("auto", None, "auto", 5), "period=5"),
        (("plugin", 997, "auto", by_plugin.PERIOD), "rate and event are for the guest's kernel"),
        (("plugin", None, "cycles", by_plugin.PERIOD), "rate and event are for the guest's kernel"),
        (("guest", None, "auto", 20_000), "period is for the plugin"),
        (("auto", 99, "auto", 20_000), "period is for the plugin"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, int | None, str, int], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        profiling.check(*arguments)
    profiling.check("auto", None, "auto", 20_000)
