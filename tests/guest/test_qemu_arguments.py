"""The parser of QEMU arguments, compared with the installed QEMU."""

from __future__ import annotations

import re

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.vm import qemuargs

NEITHER = "-no-such-option"


def qemu(*words: str) -> str:
    program = process.find("qemu-system-x86_64", package="qemu-system-x86")
    done = process.run([program, *words], deadline=Deadline.after(60), check=False)
    return done.stdout + done.stderr


def test_the_reader_knows_which_options_take_an_argument() -> None:
    names = set(re.findall(r"^--?([\w-]+)", qemu("-help"), re.MULTILINE)) - {"fw"}  # fw_cfg: - is no \w
    assert len(names) > 80
    for name in names:
        # QEMU checks all names first: it reports the first argument that it takes for an unknown option.
        said = qemu(f"-{name}", f"{NEITHER}1", f"{NEITHER}2")
        refused = re.search(f"{NEITHER}([12]): invalid option", said)
        assert refused is not None, said
        option, *_ = qemuargs.parse([f"-{name}", f"{NEITHER}1", f"{NEITHER}2"]).every
        assert (option.argument is None) == (refused[1] == "1"), name


@pytest.mark.parametrize(
    "words",
    [
        ("-device", "help"),
        ("-device", "?"),
        ("--device", "e1000,help"),
        ("-machine", "q35,help"),
        ("-cpu", "help"),
        ("-nic", "model=help"),
        ("-version",),
    ],
)
def test_what_prints_a_list_starts_no_guest(words: tuple[str, ...]) -> None:
    (option,) = qemuargs.parse(words).every
    assert option.prints
    assert len(qemu("-display", "none", *words).splitlines()) > 1


@pytest.mark.parametrize("word", ["-drive=file=x", "--device=edu"])
def test_qemu_takes_no_argument_behind_an_equals_sign(word: str) -> None:
    assert f"{word}: invalid option" in qemu(word)
