"""The instructions of a "Code:" line, from real splats."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmdebug import arch
from vmdebug.deadline import Deadline
from vmdebug.debugger import code_bytes
from vmdebug.debugger.code_bytes import Code

SPLATS = Path(__file__).parent / "splats"


def shown(code: Code, at: int = 0) -> str:
    return code_bytes.disassembled(
        code,
        arch.by_name("x86_64"),
        Deadline.after(60),
        at=at,
        named=lambda address: f"f_{address:x}+0x0/0x10",
    )


def instructions(text: str) -> list[str]:
    """Return mark, place and mnemonic of each line."""
    return [re.sub(r" +(?:[0-9a-f]{2} )*[0-9a-f]{2}  +", " ", line) for line in text.splitlines()]


def test_the_instruction_of_a_warning_is_marked_and_the_function_starts_at_its_first_byte() -> None:
    first, _ = code_bytes.find((SPLATS / "warn.log").read_text())
    assert instructions(shown(first)) == [
        "    lkdtm_WARNING+0x0 addl $0x1,0x990d(%rip)",
        "    lkdtm_WARNING+0x7 jne lkdtm_WARNING+0xa",
        "    lkdtm_WARNING+0x9 ret",
        "--> lkdtm_WARNING+0xa ud2",
        "    lkdtm_WARNING+0xc ret",
        "    lkdtm_WARNING+0xd nopl (%rax)",
        "    lkdtm_WARNING+0x10 push %rbp",
        "    lkdtm_WARNING+0x11 mov $0x2,%eax",
        "    lkdtm_WARNING+0x16 mov %gs:0x1ac00,%rdx",
    ]


def test_a_program_in_a_system_call_has_no_code_to_show() -> None:
    text = (SPLATS / "panic.log").read_text()
    assert "Code: " in text
    assert code_bytes.find(text) == []


def test_a_program_that_crashed_is_shown() -> None:
    (code,) = code_bytes.find("RIP: 0033:0x401000\nCode: 90 90 90 <8b> 00 c3\n")
    assert instructions(shown(code)) == [
        "    -0x3 nop",
        "    -0x2 nop",
        "    -0x1 nop",
        "--> +0x0 mov (%rax),%eax",
        "    +0x2 ret",
    ]


def test_bytes_before_an_instruction_begin_where_one_begins() -> None:
    # The first three are the end of `mov $0x0,%rax`: from the first byte, no instruction begins at the trap.
    (code,) = code_bytes.find("RIP: 0033:0x401000\nCode: c7 c0 00 00 00 00 <0f> 0b\n")
    assert shown(code).splitlines()[-1].split() == ["-->", "+0x0", "0f", "0b", "ud2"]


def test_targets_of_calls_have_names_if_the_place_is_known() -> None:
    line = "RIP: 0010:outer+0x1/0x20\nCode: 90 <e8> fb 0f 00 00 eb f8\n"
    (code,) = code_bytes.find(line)
    assert instructions(shown(code, at=0x1001)) == [
        "    outer+0x0 nop",
        "--> outer+0x1 call f_2001+0x0",
        "    outer+0x6 jmp outer+0x0",
    ]
    assert instructions(shown(code))[1] == "--> outer+0x1 call outer+0x1001"


@pytest.mark.parametrize("prefix", ["", "> ", ">> ", "| "])
def test_a_mail_program_has_wrapped_the_line(prefix: str) -> None:
    whole, *_ = code_bytes.find((SPLATS / "oops.log").read_text())
    text = (SPLATS / "oops.log").read_text()
    quoted = "".join(f"{prefix}{line}\n" for line in text.splitlines())
    wrapped = re.sub(r"( (?:[0-9a-f]{2} ){20})", rf"\1\n{prefix}", quoted)
    assert wrapped != quoted
    (again, *_) = code_bytes.find(wrapped)
    assert (again.data, again.trap, again.function) == (whole.data, whole.trap, whole.function)
    assert wrapped[again.end] == "\n"


@pytest.mark.parametrize(
    "line",
    ["Code: Unable to access opcode bytes at 0x40.", "Code: Bad RIP value.", "Code: 90 90", "Exit Code: 1"],
)
def test_what_has_no_marked_byte_is_no_code(line: str) -> None:
    assert code_bytes.find(f"RIP: 0010:f+0x1/0x2\n{line}\n") == []


def test_the_function_is_that_of_the_same_splat() -> None:
    text = "RIP: 0010:first+0x1/0x2\nCode: 90 <90>\nnext:\nCode: 90 <90>\n"
    assert [code.function for code in code_bytes.find(text)] == ["first", ""]
