"""Whether the symbols of a kernel are mangled."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.debugger import demangle


def compiled(directory: Path, name: str) -> Path:
    """Return an ELF file with one function."""
    source = directory / "one.c"
    source.write_text(f"void {name}(void) {{}}\n")
    made = directory / "one.o"
    process.run(["gcc", "-c", "-o", made, source], deadline=Deadline.after(30))
    return made


@pytest.mark.parametrize(
    ("name", "is_mangled"),
    [("vfs_read", False), ("a_R", False), ("_RNvCs1_6kernel5print", True)],
)
def test_names_of_rust_are_mangled(tmp_path: Path, name: str, *, is_mangled: bool) -> None:
    assert demangle.style(compiled(tmp_path, name)) == ("auto" if is_mangled else "none")


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\2\1" + b"\xff" * 100, b"no ELF file"])
def test_what_cannot_be_read_may_be(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(content)
    assert demangle.style(path) == "auto"


def test_a_file_that_is_not_there_may_be(tmp_path: Path) -> None:
    assert demangle.style(tmp_path / "vmlinux") == "auto"
