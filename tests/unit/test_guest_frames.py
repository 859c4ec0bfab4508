"""The programs in the guest whose output is frames: what `frames.h` gives each of them."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmdebug.channel.agent.program import AGENT
from vmdebug.compiler import GuestProgram
from vmdebug.deadline import Deadline
from vmdebug.progress import silent
from vmdebug.trace.guest.program import READER
from vmdebug.trace.plugin import binary
from vmdebug.trace.profile.program import SAMPLER


def frames(output: bytes) -> list[tuple[str, bytes]]:
    """Return the kind and the bytes of each frame."""
    found = []
    while output:
        size = int.from_bytes(output[:4], "little")
        found.append((chr(output[4]), output[8 : 8 + size]))
        output = output[8 + size :]
    return found


def run(program: GuestProgram, directory: Path, commands: bytes) -> list[tuple[str, bytes]]:
    """Run a program of a guest here; it removes its own file."""
    compiled = program.find(platform.machine(), directory, report=silent, deadline=Deadline.after(60))
    file = Path(shutil.copy(compiled, directory / "copy"))
    output = subprocess.run([file], input=commands, capture_output=True, check=False, timeout=20).stdout
    assert not file.exists()
    return frames(output)


def test_commands_are_answered_in_order_also_long_ones(tmp_path: Path) -> None:
    commands = b"nonsense\nread 9 /no/such/file\n" + b"x" * 40_000 + b"\nread 3 /proc/self/comm\nunfinished"
    first, *answers = run(SAMPLER, tmp_path, commands)
    assert first[0] == "R"
    assert re.fullmatch(rb"\d+ \d+", first[1])
    assert answers == [("E", b"22 "), ("E", b"2 "), ("E", b"22 "), ("R", b"copy\n")]


def test_the_reader_begins_with_its_pids_or_says_that_there_is_no_tracefs(tmp_path: Path) -> None:
    kind, text = run(READER, tmp_path, b"")[0]
    assert re.fullmatch(rb"\d+ \d+" if kind == "R" else rb"\d+ .*", text)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        *((each.source, each.parts) for each in (AGENT, READER, SAMPLER)),
        (binary.SOURCE, binary.PARTS),
    ],
    ids=lambda each: each.name if isinstance(each, Path) else "",
)
def test_a_program_is_compiled_again_when_a_header_changes(source: Path, parts: tuple[Path, ...]) -> None:
    included = re.findall(r'^#include "(.*)"$', source.read_text(), re.MULTILINE)
    assert {(source.parent / each).resolve() for each in included} <= {each.resolve() for each in parts}
