"""The plugin, compiled with a stand-in for QEMU that executes what a test says; and its collector."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from vmdebug import arch, process
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, VmError
from vmdebug.process import Child
from vmdebug.trace.expressions.compiled import (
    FRAME_INDEX,
    PC_INDEX,
    STACK_INDEX,
    Compiled,
    CompiledPlace,
)
from vmdebug.trace.expressions.generate import Shape
from vmdebug.trace.expressions.kernel_facts import Addresses
from vmdebug.trace.expressions.operations import Code, Op, Program
from vmdebug.trace.hit import Call, Hit, Task
from vmdebug.trace.plugin import binary, records
from vmdebug.trace.plugin import link as links
from vmdebug.trace.plugin.collector import PluginCollector, request
from vmdebug.trace.plugin.link import Link
from vmdebug.trace.probe import Probe, Wanted
from vmdebug.trace.trace import Trace
from vmdebug.trace.unwinding.stack import Stack

X86_64 = arch.by_name("x86_64")
FUNCTION, RETURN, TAIL, LOOP = 0x1000, 0x1040, 0x1050, 0x1060
RANGES = ((0x1000, 0x1080),)
SP = 0x8000
TEXT = 0x5000


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for QEMU with the plugin in it."""
    made = tmp_path_factory.mktemp("fake-qemu") / "qemu"
    source = Path(__file__).parents[1] / "fixtures" / "fake_qemu.c"
    words = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread", "-DAPI=4"]
    parts = [each for each in binary.PARTS if each.suffix == ".c"]
    process.run([*words, "-o", made, source, binary.SOURCE, *parts], deadline=Deadline.after(120))
    return made


class Qemu:
    """The stand-in, started."""

    def __init__(self, child: Child, path: Path) -> None:
        self.child = child
        self.path = path
        self.paused: list[str] = []
        self._said = _stream(child.stdout)
        self._words = _stream(child.stdin)
        assert self._said.readline() == b"ok\n"
        values = {"rdi": TEXT, "rdx": 7, "rax": 0, "rsp": SP, "rbp": 0, "gs_base": 0x6000, "k_gs_base": 0}
        for name, value in values.items():
            self("reg", name, f"{value:x}")
        self("boot")
        for address, code in ((FUNCTION, "f30f1efa"), (RETURN, "c3"), (TAIL, "e9aa0f0000"), (LOOP, "eb9e")):
            self("insn", f"{address:x}", code)

    def __call__(self, *words: str) -> None:
        self.send(*words)
        assert self._said.readline() == b"ok\n"

    def send(self, *words: str) -> None:
        self._words.write((" ".join(words) + "\n").encode())
        self._words.flush()

    def wait(self) -> None:
        assert self._said.readline() == b"ok\n"

    def run(self, address: int, count: int = 1, cpu: int = 0) -> None:
        self("run", f"{cpu:x}", f"{address:x}", str(count))

    def reg(self, name: str, value: int) -> None:
        self("reg", name, f"{value:x}")

    # What a collector needs of a guest.
    running = True

    def resume(self) -> None:
        self.paused.append("resume")

    def pause(self) -> None:
        self.paused.append("pause")

    def nudge(self) -> None:
        self("pause")


def _stream(given: IO[bytes] | None) -> IO[bytes]:
    assert given is not None
    return given


@pytest.fixture
def qemu(emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qemu]:
    monkeypatch.setattr("vmdebug.trace.plugin.collector.SOON_SECONDS", 0.01)
    path = tmp_path / "trace.sock"
    child = process.start([emulator, f"socket={path}"], stdin=process.PIPE, stdout=process.PIPE)
    with child:
        yield Qemu(child, path)
        _stream(child.stdin).close()
    assert child.returncode == 0


def compiled(
    code: tuple[Op, ...],
    *shapes: Shape,
    registers: tuple[str, ...] = ("rdx", "rdi", "gs_base"),
    ret: Shape | None = None,
    context: tuple[Op, ...] = (),
    text: bytes = b"",
) -> Compiled:
    ranges = RANGES if ret is not None else ()
    return Compiled(
        places=(CompiledPlace(probe=0, address=FUNCTION, code=code, ranges=ranges),),
        shapes=(shapes,),
        results=(ret,),
        registers=(*registers, "rsp", "rax"),
        text=text,
        context=context,
        clock=(),
        addresses=Addresses(),
        slide=0,
    )


def program(*ops: tuple[Code, dict[str, int]]) -> tuple[Op, ...]:
    made = Program([], bytearray())
    for code, values in ops:
        made(code, **values)
    return made.finished()


RDX = program((Code.REGISTER, {"number": 0}), (Code.PUT, {}))
NUMBER = Shape("unsigned")


def trace(qemu: Qemu, found: Compiled, *, args: tuple[str, ...] = (), **wanted: object) -> Trace:
    asked = Wanted((Probe("f", args),), **wanted)  # type: ignore[arg-type]
    return Trace(
        PluginCollector(qemu.path, "vm", qemu, found, X86_64, vmlinux=Path("vmlinux"), timeout=60), asked
    )


def test_values_in_order(qemu: Qemu) -> None:
    with trace(qemu, compiled(RDX, NUMBER), args=("count",)) as hits:
        for value in (1, 2, 2**64 - 1):
            qemu.reg("rdx", value)
            qemu.run(FUNCTION)
        assert [hit.args for hit in hits] == [{"count": 1}, {"count": 2}, {"count": 2**64 - 1}]
        assert hits[0] == Hit("f", {"count": 1}, hits[0].time, None, 0, None)
    qemu.run(FUNCTION)
    assert len(hits) == 3
    assert [hit.time for hit in hits] == sorted(hit.time for hit in hits)
    assert hits[-1].time < 60


def test_nothing_is_left_after_a_trace(qemu: Qemu) -> None:
    for _ in range(40):  # more than the plugin has room for at once
        with trace(qemu, compiled(RDX, NUMBER), args=("count",)) as hits:
            qemu.run(FUNCTION)
        assert len(hits) == 1


def test_two_traces_at_once(qemu: Qemu) -> None:
    with trace(qemu, compiled(RDX, NUMBER), args=("count",)) as first:
        qemu.run(FUNCTION)
        with trace(qemu, compiled(RDX, NUMBER), args=("count",)) as second:
            qemu.run(FUNCTION, 2)
        qemu.run(FUNCTION)
    assert (len(first), len(second)) == (4, 2)


def test_counts_of_two_cpus(qemu: Qemu) -> None:
    end = (Op(Code.END),)
    with trace(qemu, compiled(end, registers=()), count_only=True) as hits:
        qemu.run(FUNCTION, 70_000)
        qemu.run(FUNCTION, 5, cpu=1)
    assert hits.counts == {"f": 70_005}
    assert len(hits) == 0


def test_a_limit(qemu: Qemu) -> None:
    with trace(qemu, compiled(RDX, NUMBER), args=("count",), count=3) as hits:
        qemu.run(FUNCTION, 2)
        assert (len(hits), hits.full) == (2, False)
        qemu.run(FUNCTION, 2)
        assert (len(hits), hits.full) == (3, True)


def test_strings_arrays_and_memory_that_is_not_there(qemu: Qemu) -> None:
    qemu("mem", f"{TEXT:x}", (b"a name" + bytes(6) + b"more").hex().ljust(1024, "0"))
    qemu("mem", "7000", (b"x" * 300).hex())
    code = program(
        (Code.REGISTER, {"number": 1}), (Code.PUT_STRING, {"number": 0}), (Code.REGISTER, {"number": 1}),
    )  # fmt: skip
    code = (*code[:-1], Op(Code.FAIL_TO, target=5), Op(Code.PUT_MEMORY, number=1, value=4), Op(Code.END))
    shapes = (Shape("string"), Shape("array", 4))
    with trace(qemu, compiled(code, *shapes), args=("name", "start")) as hits:
        for address in (TEXT, 0x7000, 0xDEAD000):
            qemu.reg("rdi", address)
            qemu.run(FUNCTION)
    found = [list(hit.args.values()) for hit in hits]
    assert found == [["a name", "a na"], ["x" * 256, "xxxx"], [0xDEAD000, None]]


def test_a_nudge_that_the_guest_gets_too_early_is_repeated(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    nudges = []

    def nudge() -> None:
        nudges.append(1)
        if len(nudges) > 1:
            qemu("pause")

    monkeypatch.setattr(qemu, "nudge", nudge)
    with trace(qemu, compiled(RDX, NUMBER), args=("count",)) as hits:
        qemu.run(FUNCTION)
    assert len(nudges) > 1
    assert len(hits) == 1


def test_an_expression_that_cannot_be_read_is_unknown(qemu: Qemu) -> None:
    code = (
        Op(Code.FAIL_TO, target=4),
        Op(Code.REGISTER, number=1),
        Op(Code.LOAD, size=4, number=1),
        Op(Code.PUT, number=0),
        Op(Code.FAIL_TO, target=7),
        Op(Code.REGISTER, number=0),
        Op(Code.PUT, number=1),
        Op(Code.END),
    )
    with trace(qemu, compiled(code, Shape("signed"), NUMBER), args=("*p", "count")) as hits:
        qemu.reg("rdi", 0xDEAD000)
        qemu.run(FUNCTION)
        qemu("mem", "dead000", "feffffff")
        qemu.run(FUNCTION)
    assert [hit.args for hit in hits] == [{"*p": None, "count": 7}, {"*p": -2, "count": 7}]


def test_a_condition(qemu: Qemu) -> None:
    qemu("mem", f"{TEXT:x}", b"zero\0".hex())
    code = (
        Op(Code.REGISTER, number=1),
        Op(Code.SAME_STRING, target=0, value=5),
        Op(Code.FILTER),
        *RDX,
    )
    found = compiled(code, NUMBER, text=b"zero\0")
    with trace(qemu, found, args=("count",), when='$_streq(name, "zero")') as hits:
        qemu.run(FUNCTION)
        qemu.reg("rdi", TEXT + 1)
        qemu.run(FUNCTION)
    assert len(hits) == 1


def test_a_condition_that_cannot_be_evaluated_is_noted(qemu: Qemu) -> None:
    code = (Op(Code.REGISTER, number=1), Op(Code.LOAD, size=8), Op(Code.FILTER), *RDX)
    qemu.reg("rdi", 0xDEAD000)
    with trace(qemu, compiled(code, NUMBER), args=("count",), when="*p") as hits:
        qemu.run(FUNCTION, 3)
    assert len(hits) == 0
    assert "3 calls are not recorded, because the condition *p reads memory" in hits.notes[0]


def test_the_task(qemu: Qemu) -> None:
    qemu("mem", "6010", (0x9000).to_bytes(8, "little").hex())
    qemu("mem", "9000", ((-5 & 0xFFFFFFFF).to_bytes(4, "little") + b"dd".ljust(16, b"\0")).hex())
    context = program(
        (Code.REGISTER, {"number": 2}), (Code.LOAD, {"size": 8, "value": 0x10}), (Code.DUPLICATE, {}),
        (Code.LOAD, {"size": 4, "number": 1}), (Code.PUT, {}),
        (Code.CONSTANT, {"value": 4}), (Code.ADD, {}), (Code.PUT_MEMORY, {"value": 16}),
    )  # fmt: skip
    with trace(qemu, compiled(RDX, NUMBER, context=context), args=("count",)) as hits:
        qemu.run(FUNCTION)
    assert [hit.task for hit in hits] == [Task(-5, "dd")]


RESULT = Shape("signed", 4)


def test_returns_belong_to_their_calls(qemu: Qemu) -> None:
    with trace(qemu, compiled(RDX, NUMBER, ret=RESULT), args=("count",), ret=True) as hits:
        for depth in (0, 1, 2):
            qemu.reg("rsp", SP - 64 * depth)
            qemu.reg("rdx", depth)
            qemu.run(FUNCTION)
        for depth, result in ((2, 20), (1, 0xFFFFFFF5), (0, 1)):
            qemu.reg("rsp", SP - 64 * depth)
            qemu.reg("rax", result)
            qemu.run(RETURN)
        qemu.run(RETURN)  # of a call before the trace
    assert [(hit.args["count"], hit.ret) for hit in hits] == [(2, 20), (1, -11), (0, 1)]
    durations = [hit.duration or 0 for hit in hits]
    assert 0 < durations[0] < durations[1] < durations[2] < 60


def test_a_call_that_ends_by_a_jump_or_not_at_all_has_no_return_value(qemu: Qemu) -> None:
    with trace(qemu, compiled(RDX, NUMBER, ret=RESULT), args=("count",), ret=True) as hits:
        qemu.run(FUNCTION)
        qemu.run(LOOP)  # a jump inside the function
        qemu.run(TAIL)
        assert [hit.ret for hit in hits] == [None]
        qemu.run(FUNCTION)  # its task switches away for ever, and its stack is used again
        qemu.run(FUNCTION)
        assert len(hits) == 2
    assert [hit.ret for hit in hits] == [None, None, None]


def test_many_open_calls(qemu: Qemu) -> None:
    with trace(qemu, compiled(RDX, NUMBER, ret=RESULT), args=("count",), ret=True) as hits:
        stacks = [0x100000 + 0x4000 * number for number in range(3000)]
        for number, sp in enumerate(stacks):
            qemu.reg("rsp", sp)
            qemu.reg("rdx", number)
            qemu.run(FUNCTION)
        for number, sp in sorted(enumerate(stacks), key=lambda each: each[0] * 7919 % 3001):
            qemu.reg("rsp", sp)
            qemu.reg("rax", number)
            qemu.run(RETURN)
    assert len(hits) == 3000
    assert all(hit.ret == hit.args["count"] for hit in hits)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings that are soon full."""
    monkeypatch.setattr(links, "RING_BYTES", 2 << 12)
    monkeypatch.setattr(links, "_LEAST_RING", 1 << 12)


def test_a_full_ring_makes_the_guest_wait(qemu: Qemu, small: None) -> None:
    with trace(qemu, compiled(RDX, NUMBER), args=("count",)) as hits:
        qemu.run(FUNCTION, 20_000)
        qemu.run(FUNCTION, 20_000, cpu=1)
    assert len(hits) == 40_000
    assert hits.notes == ()


def test_or_drops_hits_and_counts_them(qemu: Qemu, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "_drain", lambda _: None)
    with trace(qemu, compiled(RDX, NUMBER), args=("count",), overflow="drop") as hits:
        qemu.run(FUNCTION, 1000)
        monkeypatch.undo()
    lost = int(hits.notes[0].split()[0])
    assert hits.notes[0].endswith("hits were dropped: they came faster than vmdebug could read them")
    assert 0 < lost < 1000
    assert len(hits) + lost == 1000


def test_a_client_that_is_killed_does_not_hold_the_guest(qemu: Qemu, tmp_path: Path) -> None:
    script = f"""
        import os, sys
        from pathlib import Path
        from vmdebug.trace.expressions.operations import Code, Op
        from vmdebug.trace.plugin import link, wire
        link.RING_BYTES, link._LEAST_RING = 1 << 13, 1 << 12
        link.Link._drain = lambda self: None
        made = link.Link(Path({str(qemu.path)!r}), "vm")
        made.begin(wire.Request(probes=1, places=(wire.Place(address={FUNCTION}, code=(Op(Code.END),)),)))
        print("begun", flush=True)
        made.wait_ready(60)
        print("ready", flush=True)
        sys.stdin.read()
    """
    argv = [sys.executable, "-c", textwrap.dedent(script)]
    with process.start(argv, stdin=process.PIPE, stdout=process.PIPE) as client:
        said = _stream(client.stdout)
        assert said.readline() == b"begun\n"
        qemu("pause")
        assert said.readline() == b"ready\n"
        qemu.send("run", "0", f"{FUNCTION:x}", "100000")
        os.kill(client.pid, signal.SIGKILL)
    qemu.wait()
    with trace(qemu, compiled(RDX, NUMBER), args=("count",)) as hits:
        qemu.run(FUNCTION)
    assert len(hits) == 1


def test_a_request_that_is_wrong_is_refused_with_the_reason(qemu: Qemu) -> None:
    for found, says in (
        (compiled(RDX, NUMBER, registers=("xmm77",)), "does not have a register that the trace reads"),
        (compiled((Op(Code.REGISTER, number=99), Op(Code.END)), NUMBER), "an operation is not valid"),
        (compiled((Op(Code.JUMP, target=99), Op(Code.END)), NUMBER), "an operation is not valid"),
    ):
        with pytest.raises(VmError, match=says), trace(qemu, found, args=("count",)):
            pass


def test_a_vm_without_the_plugin(tmp_path: Path, qemu: Qemu) -> None:
    collector = PluginCollector(
        tmp_path / "none", "vm", qemu, compiled(RDX, NUMBER), X86_64, vmlinux=Path("vmlinux"), timeout=60
    )
    with pytest.raises(StateError, match="QEMU of vm has no trace plugin: No such file"):
        collector.start(Wanted((Probe("f"),)))


def test_a_stopped_guest_runs_inside_the_block_only(qemu: Qemu) -> None:
    qemu.running = False
    with contextlib.ExitStack() as stopped:
        # Its vCPU pauses when it resumes.
        stopped.enter_context(_instead(qemu))
        hits = stopped.enter_context(trace(qemu, compiled(RDX, NUMBER), args=("count",)))
        qemu.run(FUNCTION)
        qemu.running = True
    assert len(hits) == 1
    assert qemu.paused == ["resume", "pause"]


@contextlib.contextmanager
def _instead(qemu: Qemu) -> Iterator[None]:
    usual = qemu.resume

    def resume() -> None:
        usual()
        qemu("pause")

    qemu.resume = resume  # type: ignore[method-assign]
    yield
    qemu.resume = usual  # type: ignore[method-assign]


def test_qemu_that_ends_leaves_what_it_wrote(qemu: Qemu) -> None:
    with trace(qemu, compiled(RDX, NUMBER), args=("count",)) as hits:
        qemu.run(FUNCTION, 5)
        _stream(qemu.child.stdin).close()
        qemu.child.wait()
        deadline = Deadline.after(20)
        while not hits.ended:
            hits.take()
            assert not deadline.passed
        assert hits.ended == "the guest is gone"
    assert len(hits) == 5


STACK = 0xFFFF_C900_0000_0000
STACK_BYTES = 16384


@pytest.mark.parametrize("in_interrupt", [False, True])
def test_the_stack_of_a_hit(qemu: Qemu, *, in_interrupt: bool) -> None:
    """It ends with the task's stack; the last word of that of interrupts is the task's stack pointer."""
    task_sp, interrupt_sp, last_word = STACK + STACK_BYTES - 64, STACK + 0x9000, STACK + 0x9078
    own = bytes(range(64))
    interrupts = bytes(0x78) + task_sp.to_bytes(8, "little")
    qemu("mem", f"{task_sp:x}", own.hex())
    qemu("mem", f"{interrupt_sp:x}", interrupts.hex())
    qemu.reg("rdi", last_word)
    qemu.reg("rsp", interrupt_sp if in_interrupt else task_sp)
    code = (
        Op(Code.CONSTANT, value=FUNCTION),
        Op(Code.PUT, number=PC_INDEX),
        Op(Code.PUT_REGISTER, number=FRAME_INDEX, target=0),
        Op(Code.REGISTER, number=1),
        Op(Code.REGISTER, number=3),
        Op(Code.PUT_STACK, number=STACK_INDEX, value=STACK_BYTES),
        Op(Code.END),
    )
    wanted, found = Wanted((Probe("f"),)), compiled(code)
    stacks: list[Stack] = []

    def unwound(stack: Stack) -> tuple[Call, ...]:
        stacks.append(stack)
        return (Call("f", stack.pc),)

    with Link(qemu.path, "vm") as link:
        link.begin(request(found, wanted, X86_64))
        qemu("pause")
        qemu.run(FUNCTION)
        link.finish(60)
        (hit,) = records.hits(link.take(), wanted.probes, found, 0, unwound)
    assert hit.backtrace == (Call("f", FUNCTION),)
    parts = ((interrupt_sp, interrupts), (task_sp, own)) if in_interrupt else ((task_sp, own),)
    assert stacks == [Stack(pc=FUNCTION, sp=parts[0][0], bp=7, parts=parts)]
