"""What the holder asks of a gdbstub: who runs, who is held, and that nobody stays held."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, VmError
from vmdebug.hunting.holder import Holder, Point
from vmdebug.hunting.holds import Hold
from vmdebug.hunting.stub import Stub

POINTS = (Point("read", (0x10,)), Point("store", (0x20, 0x28)))
ONE = Hold(pause=0, point=0, cpu=None, passes=0, until=None, milliseconds=1, lag=0)


class FakeStub:
    """Two CPUs: each `resume` ends with the next of the stops; None: nobody comes to a point."""

    def __init__(self, *stops: str | None) -> None:
        self.stops = [*stops]
        self.asked: list[str] = []
        self.running: set[int] = set()
        self.inserted: set[int] = set()
        self.waiting: str | None = None
        self.over = threading.Event()

    def resume(self) -> None:
        self._run("resume", {0, 1})

    def resume_only(self, cpus: Sequence[int]) -> None:
        self._run(f"resume {[*cpus]}", {*cpus})

    def step(self, cpu: int) -> None:
        assert not self.inserted
        self.asked.append(f"step {cpu}")
        self.waiting = f"T05thread:p01.0{cpu + 1};"

    def interrupt(self) -> None:
        assert self.running
        self.asked.append("interrupt")
        self.running, self.waiting = set(), "T02thread:p01.01;"

    def stopped(self, seconds: float) -> str | None:
        assert seconds <= 20
        stop, self.waiting = self.waiting, None
        if stop is not None:
            self.running = set()
        return stop

    def insert(self, address: int, *, deadline: Deadline) -> None:
        assert not self.running
        assert not deadline.passed
        self.inserted.add(address)

    def remove(self, address: int, *, deadline: Deadline) -> None:
        assert not self.running
        assert not deadline.passed
        self.inserted.remove(address)

    def _run(self, what: str, cpus: set[int]) -> None:
        assert not self.running
        self.asked.append(what)
        self.running = cpus
        # Without points, nobody stops.
        self.waiting = self.stops.pop(0) if self.inserted and self.stops else None
        if not self.stops and not self.inserted and cpus == {0, 1}:
            self.over.set()


def held(stub: FakeStub, *wanted: Hold) -> list[str]:
    with Holder(cast("Stub", stub), POINTS, wanted, cpus=2) as holder:
        assert stub.over.wait(10)
    return holder.done


def test_one_cpu_is_held_for_its_time_while_the_other_runs() -> None:
    stub = FakeStub("T05thread:p01.02;")
    (told,) = held(stub, ONE)
    assert stub.asked == ["resume", "interrupt", "resume", "resume [0]", "interrupt", "resume"]
    assert told.startswith("CPU 1 held at read for ")
    assert (stub.running, stub.inserted) == ({0, 1}, set())


def test_another_cpu_ends_a_hold_at_its_point() -> None:
    stub = FakeStub("T05thread:p01.01;", "T05thread:p01.02;")
    (told,) = held(stub, Hold(pause=0, point=0, cpu=0, passes=0, until=1, milliseconds=900, lag=1))
    assert told.endswith("until CPU 1 came to store and 1 ms further")
    assert stub.asked[3:] == ["resume [1]", "resume [1]", "interrupt", "resume"]


def test_the_wrong_cpu_passes_the_point() -> None:
    stub = FakeStub("T05thread:p01.01;", "T05thread:p01.02;")
    (told,) = held(stub, Hold(pause=0, point=0, cpu=1, passes=0, until=None, milliseconds=1, lag=0))
    assert told.startswith("CPU 1 held at read")
    assert stub.asked[3:5] == ["step 0", "resume"]


def test_nobody_stays_held_when_the_run_ends() -> None:
    stub = FakeStub("T05thread:p01.01;", None)
    until = Hold(pause=0, point=0, cpu=None, passes=0, until=1, milliseconds=60_000, lag=0)
    with Holder(cast("Stub", stub), POINTS, [until], cpus=2):
        assert waited(lambda: stub.asked[-1:] == ["resume [1]"])
    assert (stub.running, stub.inserted) == ({0, 1}, set())


def test_a_guest_that_has_panicked_stays_as_it_is() -> None:
    stub = FakeStub("T06thread:p01.01;")
    with Holder(cast("Stub", stub), POINTS, [ONE], cpus=2) as holder:
        assert waited(lambda: len(stub.asked) == 3 and not stub.running)
    assert stub.asked == ["resume", "interrupt", "resume"]
    assert not holder.done


def test_a_qemu_that_has_ended_is_for_the_script_to_see() -> None:
    stub = FakeStub()

    def interrupt() -> None:
        stub.asked.append("interrupt")
        raise GuestDiedError("QEMU has ended")

    stub.interrupt = interrupt  # type: ignore[method-assign]
    with Holder(cast("Stub", stub), POINTS, [ONE], cpus=2) as holder:
        assert waited(lambda: "interrupt" in stub.asked)
    assert not holder.done


def test_a_qemu_that_does_not_answer_is_an_error() -> None:
    stub = FakeStub()

    def refuse(_: int, *, deadline: Deadline) -> None:
        raise VmError(f"QEMU's gdbstub refused it, {deadline.seconds:g} s")

    stub.insert = refuse  # type: ignore[method-assign,assignment]
    with (
        pytest.raises(VmError, match="refused it"),
        Holder(cast("Stub", stub), POINTS, [ONE], cpus=2),
    ):
        assert waited(lambda: len(stub.asked) == 3)


def waited(holds: Callable[[], bool]) -> bool:
    """Wait until a condition holds."""
    for pause in Deadline.after(10).pauses("the holder"):
        if holds():
            return True
        threading.Event().wait(pause)
    return False
