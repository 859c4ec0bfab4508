"""GDB goes back in a replay."""

from __future__ import annotations

import pytest

from tests.gdb.barereplay import END
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import GdbError


def position(gdb: Gdb) -> int:
    return int(gdb.console("python import vmd_history; print(vmd_history.position())"))


@pytest.mark.parametrize("there", [f"{END + 1}", "5M", "-5M", "+1M"])
def test_a_position_outside_of_the_recording_is_refused_with_its_bounds(past: Gdb, there: str) -> None:
    with pytest.raises(GdbError, match=f"no position -?[0-9]+: its positions are 0 to {END}"):
        past.console(f"vmd-goto {there}")
    assert position(past) == END - 1


@pytest.mark.parametrize("there", [END + 1, -1])
def test_the_same_in_the_api(past: Gdb, there: int) -> None:
    with pytest.raises(GdbError, match=f"no position {there}: its positions are 0 to {END}"):
        past.goto(there)
    assert position(past) == END - 1


def test_the_bounds_themselves_are_positions(past: Gdb) -> None:
    past.goto(0)
    assert position(past) == 0
    past.goto(END)
    assert position(past) == END
