"""Values from recorded answers of `gdbinit/vmd_mi.py`, without a GDB."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdebug.debugger import layout
from vmdebug.debugger.layout import Enum, Field, Int
from vmdebug.debugger.memory import Memory
from vmdebug.debugger.value import Value
from vmdebug.errors import GdbError

PAIR = [
    {"name": "struct pair", "size": 8, "kind": "struct", "fields": [["a", 1, 0, 0], ["b", 1, 32, 0]]},
    {"name": "int", "size": 4, "kind": "int", "signed": True},
]


class Gdb:
    """Answers each command with the next recorded answer."""

    def __init__(self, *answers: Mapping[str, Any]) -> None:
        self.commands: list[str] = []
        self._answers = list(answers)

    def __call__(self, command: str, timeout: float) -> Mapping[str, Any]:
        self.commands.append(command)
        return self._answers.pop(0)


def answer(number: int, data: bytes, layouts: list[Any], **about: Any) -> dict[str, str]:
    entry = {"type": number, "address": 0x1000, "missing": [], "layouts": layouts, **about}
    return {
        "about": base64.b64encode(json.dumps(entry).encode()).decode(),
        "data": base64.b64encode(data).decode(),
    }


def value(*answers: Mapping[str, Any]) -> tuple[Value, Gdb]:
    gdb = Gdb(*answers)
    memory = Memory(gdb)
    return Value(memory, memory.evaluate("x"), "x"), gdb


def test_the_commands_name_what_the_host_knows() -> None:
    pointer = [*PAIR, {"name": "struct pair *", "size": 8, "kind": "pointer"}]
    found, gdb = value(
        answer(2, (0x2000).to_bytes(8, "little"), pointer),
        answer(0, bytes(8), []),
        {"data": base64.b64encode(b"text").decode()},
    )
    found.deref_()
    assert found.string_(9) == "text"
    assert gdb.commands == ['-vmd-value 0 "x"', "-vmd-element 3 2 8192 0", "-vmd-string 8192 9"]


def test_a_frame_and_quotes_pass_to_gdb() -> None:
    gdb = Gdb(answer(1, bytes(4), PAIR))
    Memory(gdb).evaluate('f("a")', " --thread 2 --frame 1")
    assert gdb.commands == [r'-vmd-value --thread 2 --frame 1 0 "f(\"a\")"']


def test_layouts_that_come_twice_are_kept_once() -> None:
    gdb = Gdb(answer(0, bytes(8), PAIR), answer(0, bytes(8), []))
    memory = Memory(gdb)
    memory.evaluate("x")
    memory.layouts.add(0, PAIR)  # type: ignore[arg-type]  # what another thread's answer brings
    memory.evaluate("x")
    assert len(memory.layouts) == 2
    assert gdb.commands[1] == '-vmd-value 2 "x"'


def test_what_is_missing_is_missing_alone() -> None:
    found, _ = value(answer(0, bytes([1, 0, 0, 0, 2, 0, 0, 0]), PAIR, address=None, missing=[[4, 4]]))
    assert found.to_python_() == {"a": 1, "b": None}
    assert int(found.a) == 1
    assert found.optimized_out_
    assert not found.a.optimized_out_
    with pytest.raises(GdbError, match=r"the compiler has optimised out `x\.b`"):
        int(found.b)


def test_arrays_with_missing_elements() -> None:
    layouts = [
        {"name": "short [3]", "size": 6, "kind": "array", "target": 1, "count": 3},
        {"name": "short", "size": 2, "kind": "int", "signed": True},
    ]
    found, _ = value(answer(0, bytes([1, 0, 2, 0, 255, 255]), layouts, missing=[[2, 2]]))
    assert found.to_python_() == [1, None, -1]


def test_an_answer_of_another_version_says_so() -> None:
    with pytest.raises(GdbError, match="unknown form"):
        Memory(Gdb({"about": "e30=", "data": ""})).evaluate("x")


ENUM = Enum("enum e", 4, True, (("NONE", 0), ("A", 1), ("B", 2), ("C", 4), ("AB", 3), ("MINUS", -1)))


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "NONE"), (1, "A"), (3, "AB"), (5, "A|C"), (-1, "MINUS"), (8, None), (9, None), (-2, None)],
)
def test_enumerators_and_flags(number: int, name: str | None) -> None:
    assert ENUM.named(number) == name


@given(
    st.integers(min_value=0, max_value=40),
    st.integers(min_value=1, max_value=33),
    st.integers(min_value=0),
    st.booleans(),
)
def test_bit_fields_anywhere(position: int, bits: int, number: int, signed: bool) -> None:
    number %= 1 << bits
    noise = int.from_bytes(b"\xa5" * 12, "little") & ~(((1 << bits) - 1) << (position + 8))
    data = (noise | number << (position + 8)).to_bytes(12, "little")
    found = layout.bit_field(data, 1, Field("f", 0, position, bits), signed=signed)
    assert found == (number - (1 << bits) if signed and number >> (bits - 1) else number)


def test_only_plain_char_is_text() -> None:
    named = {name: layout.is_char(Int(name, 1, False)) for name in ("char", "const char", "unsigned char")}
    assert named == {"char": True, "const char": True, "unsigned char": False}
