"""Disassembles the bytes that a kernel prints around an instruction: "Code: 48 89 <0f> 0b c3 …".

Like scripts/decodecode of the kernel it uses objdump. x86 prints the byte at which the CPU was in angle
brackets: see show_opcodes of arch/x86/kernel/dumpstack.c.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmdebug import arch, process
from vmdebug.deadline import Deadline

_BYTE = r"<?[0-9a-f]{2}>?"
_BETWEEN = r"(?:[ \t]+|[ \t]*\r?\n[>| \t]*)"
"""Between two bytes; a mail program may have wrapped the line, and quoted it."""

_CODE = re.compile(rf"\bCode: ?(?P<bytes>{_BYTE}(?:{_BETWEEN}{_BYTE}(?![\w:+-]))*)")
_AT = re.compile(r"RIP: ?[0-9a-f]{4}:(?:(?P<function>[\w.$]+)\+0x(?P<offset>[0-9a-f]+)/)?")
"""Where the CPU was; without a function it was in user space."""

_ROW = re.compile(r"^ *(?P<at>[0-9a-f]+):\t(?P<bytes>(?:[0-9a-f]{2} )+) *\t(?P<text>.*)$", re.MULTILINE)
_COMMENT = re.compile(r" # 0x[0-9a-f]+$")
_TARGET = re.compile(r"^(?P<what>(?:call|j\w+)\w*\s+)0x(?P<address>[0-9a-f]+)")

_LONGEST = 15
"""Bytes of the longest x86 instruction: Intel SDM volume 2, 2.3.11."""

_NOP = b"\x90"
_SYSCALL = b"\x0f\x05"

_MARK, _NO_MARK = "-->", "   "

Named = Callable[[int], str]
"""Returns the function at a linked address, "symbol+0x12/0x34"; "" if it is in none."""


@dataclass(frozen=True, slots=True)
class Code:
    """One "Code:" line.

    Args:
        end: Where it ends in the text: the offset of its newline, or of the end of the text.
        data: The bytes.
        trap: Which of them the CPU was at.
        function: The function that it was in; "" if that is unknown.
        offset: The offset of the byte at `trap` in the function.
        spot: Where the function is named in the text; -1 if it is not.
    """

    end: int
    data: bytes
    trap: int
    function: str = ""
    offset: int = 0
    spot: int = -1


def find(text: str) -> list[Code]:
    """Return the "Code:" lines of a text that say which byte the CPU was at.

    A user program that was in a system call is left out: the CPU was not at its code.
    """
    places = list(_AT.finditer(text))
    found = []
    after = 0
    for match in _CODE.finditer(text):
        words = re.findall(_BYTE, match["bytes"])
        traps = [number for number, word in enumerate(words) if word.startswith("<")]
        at = next((each for each in reversed(places) if after <= each.end() <= match.start()), None)
        after = match.end()
        data = bytes(int(word.strip("<>"), 16) for word in words)
        if len(traps) != 1 or (at and not at["function"] and data[: traps[0]].endswith(_SYSCALL)):
            continue
        end = text.find("\n", match.end())
        code = Code(end if end >= 0 else len(text), data, traps[0])
        if at is not None and at["function"]:
            code = Code(code.end, data, traps[0], at["function"], int(at["offset"], 16), at.start("function"))
        found.append(code)
    return found


def disassembled(code: Code, machine: arch.Arch, deadline: Deadline, *, at: int = 0, named: Named) -> str:
    """Return the instructions, one a line, with "-->" before the one that the CPU was at.

    Args:
        code: The bytes.
        machine: The architecture.
        deadline: When to give up.
        at: The linked address of the byte at `code.trap`; 0 if it is unknown.
        named: Names the targets of calls and jumps, if `at` is known.

    Returns:
        The lines; "" if no instruction begins at that byte.

    Raises:
        HostError: there are no binutils.
        DeadlineError: it took too long.
    """
    start, rows = _aligned(code, machine, deadline)
    if not rows:
        return ""
    labels = [_label(code, start + int(row["at"], 16) - code.trap) for row in rows]
    width = max(map(len, labels))
    bytes_width = max(len(row["bytes"].strip()) for row in rows)
    lines = []
    for label, row in zip(labels, rows, strict=True):
        mark = _MARK if start + int(row["at"], 16) == code.trap else _NO_MARK
        text = _resolved(" ".join(row["text"].split()), code, at, start, named)
        lines.append(f"{mark} {label:{width}}  {row['bytes'].strip():{bytes_width}}  {text}")
    return "\n".join(lines)


def _label(code: Code, distance: int) -> str:
    """Return the place of an instruction that is so many bytes after the one that the CPU was at."""
    offset = code.offset + distance
    sign = "-" if offset < 0 else "+"
    return f"{code.function}{sign}{abs(offset):#x}"


def _aligned(code: Code, machine: arch.Arch, deadline: Deadline) -> tuple[int, list[re.Match[str]]]:
    """Disassemble from the first byte from which an instruction begins at `code.trap`.

    The kernel prints bytes from a fixed distance, which may be inside an instruction. What is before the
    function is of another one.
    """
    first = max(code.trap - code.offset, 0) if code.function else 0
    for start in itertools.chain(range(first, min(first + _LONGEST, code.trap)), (code.trap,)):
        rows = list(_objdump(code.data[start:], machine, deadline))
        if any(start + int(row["at"], 16) == code.trap for row in rows):
            return start, rows
    return 0, []


def _objdump(data: bytes, machine: arch.Arch, deadline: Deadline) -> Iterator[re.Match[str]]:
    """Yield the whole instructions in some bytes; the last bytes may be the beginning of another one."""
    with tempfile.NamedTemporaryFile(prefix="vmdebug-code-") as file:
        file.write(data + _NOP * _LONGEST)
        file.flush()
        words = (
            "-D",
            "-z",
            "-w",
            "-b",
            "binary",
            "-m",
            machine.debug.gdb_names[0],
            f"--insn-width={_LONGEST}",
        )
        said = process.run(
            [process.find("objdump", package="binutils"), *words, file.name], deadline=deadline
        ).stdout
    for row in _ROW.finditer(said):
        if int(row["at"], 16) + len(row["bytes"].split()) <= len(data):
            yield row


def _resolved(text: str, code: Code, at: int, start: int, named: Named) -> str:
    """Return an instruction with the name of what it calls or jumps to.

    objdump has the first byte at address 0, so addresses relative to the instruction mean nothing.
    """
    text = _COMMENT.sub("", text)
    target = _TARGET.match(text)
    if target is None:
        return text
    relative = int(target["address"], 16)
    distance = (relative if relative < 1 << 63 else relative - (1 << 64)) + start - code.trap
    inside = 0 <= distance + code.trap < len(code.data)
    name = named(at + distance) if at and not inside else ""
    return f"{target['what']}{name.partition('/')[0] or _label(code, distance)}{text[target.end() :]}"
