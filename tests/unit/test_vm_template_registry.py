from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError
from vmdebug.process import ProcessRef
from vmdebug.vm import every, names, runtime_directory, template_registry
from vmdebug.vm.template_registry import Entry, Held

GONE = Held(holder=ProcessRef(pid=1, started=-1))


def soon() -> Deadline:
    return Deadline.after(20)


def mine() -> Held:
    me = ProcessRef.of(os.getpid())
    assert me is not None
    return Held(holder=me)


def entry(*held: Held) -> Entry:
    return Entry(how="boot", reason="a test", holders=held)


def put(*held: Held) -> None:
    with template_registry.slot("key", deadline=soon()) as slot:
        slot.write(entry(*held))


def test_a_place_that_nothing_is_put_into_leaves_nothing(runtime: Path) -> None:
    with template_registry.slot("key", deadline=soon()) as slot:
        assert slot.read() is None
    assert not runtime_directory.location().exists()


def test_who_has_gone_holds_nothing(runtime: Path) -> None:
    put(GONE, mine())
    with template_registry.slot("key", deadline=soon()) as slot:
        assert slot.read() == entry(mine())
        slot.leave(mine())
    assert not runtime_directory.location().exists()


def test_two_holds_of_one_process_are_two(runtime: Path) -> None:
    put(mine(), mine())
    with template_registry.slot("key", deadline=soon()) as slot:
        slot.leave(mine())
        assert slot.read() == entry(mine())
        slot.leave(mine())
    assert not runtime_directory.location().exists()


def test_what_nobody_holds_goes_with_the_next_look(runtime: Path) -> None:
    put(GONE)
    assert names() == []
    assert every() == []
    assert not runtime_directory.location().exists()


def test_a_look_leaves_what_is_held_or_in_use(runtime: Path) -> None:
    put(mine())
    every()
    with template_registry.slot("key", deadline=soon()) as slot:
        slot.write(entry(GONE))
        every()
        assert (runtime_directory.location() / template_registry.DIRECTORY / "key.json").exists()
    every()
    assert not runtime_directory.location().exists()


def test_one_that_is_being_made_is_waited_for(runtime: Path) -> None:
    with (
        template_registry.slot("key", deadline=soon()),
        pytest.raises(DeadlineError, match="for another process to make the template"),
        template_registry.slot("key", deadline=Deadline.after(0.05)),
    ):
        pass
