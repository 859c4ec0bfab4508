"""The arguments in a trace, compared with those that GDB prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmdebug import process, shipped
from vmdebug.deadline import Deadline

PROGRAM = """
enum kind { NONE = -1, SOME = 7 };
struct inner { unsigned char name[8]; short shorts[2]; };
struct outer { int id; struct inner *in; struct inner here; };
long everywhere = 1L << 40;
__attribute__((noipa)) long
noted(signed char c, _Bool flag, unsigned u, enum kind kind,
      struct outer *outer, const char *text, int seventh)
{ return c + flag + u + kind + outer->id + text[0] + seventh + everywhere; }
int main(void)
{
    struct inner in = {"pointed", {-3, 4}};
    struct outer outer = {-5, &in, {"rest\\0\\x9a", {0, 0}}};
    return noted(-2, 1, 4000000000u, NONE, &outer, "words", -9) == 0;
}
"""

NOTED: dict[str, Any] = {
    "c": -2,
    "flag": 1,
    "u": 4_000_000_000,
    "kind": -1,
    "text": "words",
    "*text": ord("w"),
    "outer->id": -5,
    "outer->in->name": "pointed",
    "outer->here.name": "rest",  # what follows its end is no UTF-8
    "seventh": -9,
    "everywhere": 1 << 40,
    "c + 1": -1,
    "nosuch": None,
    "outer->nosuch": None,
}

IN_REGISTERS = {"c": "rdi", "flag": "rsi", "u": "rdx", "kind": "rcx", "outer": "r8", "text": "r9"}

NAMES = [*IN_REGISTERS, "seventh", "everywhere"]

NOTE = f"""
import json
import gdb, vmd_expression, vmd_registers
registers = vmd_registers.Registers()
noted = {{text: vmd_expression.Expression(text).note(registers) for text in {list(NOTED)}}}
held = {{name: vmd_registers.holding(name, registers.pc) for name in {NAMES}}}
address = vmd_expression.Expression("outer").note(registers)
print(json.dumps([noted, held, address - int(gdb.parse_and_eval("outer"))]))
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The values recorded at the first instruction of `noted`, and the registers that hold them."""
    directory: Path = tmp_path_factory.mktemp("program")
    (directory / "program.c").write_text(PROGRAM)
    (directory / "note.py").write_text(f"import sys; sys.path.insert(0, {str(shipped.gdbinit())!r})\n{NOTE}")
    compile_ = ["gcc", "-g", "-O2", "-o", str(directory / "program"), str(directory / "program.c")]
    process.run(compile_, deadline=Deadline.after(60))
    commands = (
        "set debuginfod enabled off",
        "break *noted",
        "run",
        f"source {directory / 'note.py'}",
        "kill",
    )
    argv = ["gdb", "-nx", "-q", "--batch", *(word for line in commands for word in ("-ex", line))]
    done = process.run([*argv, str(directory / "program")], deadline=Deadline.after(60))
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("[{"))
    return json.loads(line)


def test_arguments_their_fields_and_what_takes_gdbs_parser(answer: Any) -> None:
    assert answer[0] == NOTED
    assert answer[2] == 0


def test_what_needs_no_frame(answer: Any) -> None:
    assert answer[1] == {**IN_REGISTERS, "seventh": None, "everywhere": None}
