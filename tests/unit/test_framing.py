from __future__ import annotations

import base64
import gzip
import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.serial_guest import kernel_lines
from vmdebug import process
from vmdebug.channel.log import messages
from vmdebug.channel.log.messages import MessageFilter
from vmdebug.channel.serial import framing
from vmdebug.channel.serial.framing import Answers, Block
from vmdebug.channel.shell import command_line
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError

TOKEN = "0123456789"  # noqa: S105 - no secret

answers = st.lists(
    st.sampled_from([b"_0123456789:s0oe.\n", b"_0123456789:o.\n", b"H4sIAAAA+/==\r\n", b"echo $k\r\n"]),
    max_size=30,
).map(b"".join)


@given(
    text=answers,
    noise=st.lists(st.tuples(st.integers(0, 600), kernel_lines), min_size=1),
    cuts=st.lists(st.integers(0, 2000)),
)
def test_kernel_messages_are_taken_out_wherever_they_land_and_however_they_are_cut(
    text: bytes, noise: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    mixed = text
    # From the end, so that none lands within another: the port is locked while one is written.
    for place, line in sorted(((place % (len(text) + 1), line) for place, line in noise), reverse=True):
        mixed = mixed[:place] + line + mixed[place:]
    edges = [0, *sorted(cut % (len(mixed) + 1) for cut in cuts), len(mixed)]
    filtered = MessageFilter()
    clean = b"".join(filtered.feed(mixed[start:end]) for start, end in itertools.pairwise(edges))
    assert clean == text
    assert sorted(filtered.messages) == sorted(line for _, line in noise)
    assert filtered.held == b""


@pytest.mark.parametrize(
    "text",
    [
        b"[root@nixos:~]# ls\r\n",
        b"a[0] * b[1] < c\n",
        b"[  OK  ] Started udev.\r\n",
        b"** NOTICE **\n",
        b"[1.5\n",
    ],
)
def test_other_text_in_brackets_is_no_kernel_message(text: bytes) -> None:
    assert MessageFilter().feed(text) == text


def test_a_prompt_is_held_back_only_until_its_line_goes_on() -> None:
    filtered = MessageFilter()
    assert filtered.feed(b"\r\n[root@nixos:~]# ") == b"\r\n"
    assert filtered.feed(b"_0123456789:r.\n") == b"[root@nixos:~]# _0123456789:r.\n"


@given(st.binary(max_size=5000).map(lambda data: data.replace(b"\0", b"")))
def test_every_typed_line_is_short_and_of_printable_characters(command: bytes) -> None:
    for group in framing.upload(command or b"x"):
        for line in group.lines.splitlines():
            assert len(line) < 512
            assert line.isprintable()


@given(st.integers(1, 40_000))
def test_what_is_typed_at_once_fits_a_terminal(size: int) -> None:
    *groups, last = framing.upload(b"x" * size)
    first = len(framing.PREPARE) + len(framing.ACKNOWLEDGE)
    assert all(first + len(group.lines) < 4096 for group in groups)
    assert len(framing.PREPARE) + len(last.lines) + len(framing.run("0022")) < 4096
    assert last.length == size


def test_the_line_that_starts_an_agent_is_short_and_shows_no_answer_in_its_echo() -> None:
    typed = framing.start(TOKEN)
    assert len(typed) < framing.LINE
    assert f"_{TOKEN}:" not in typed


@pytest.mark.parametrize("line", [framing.probe_line(TOKEN, 3), framing.question(TOKEN, 3, helper=False)])
def test_no_echo_of_a_question_is_its_answer(line: str) -> None:
    known = Answers.of(TOKEN)
    assert not known.lost.search(line.encode())
    assert not known.idle.search(line.encode())
    assert framing.answer(TOKEN, 3) not in line.encode()


@given(st.binary())
def test_an_output_is_unpacked(data: bytes) -> None:
    sent = base64.encodebytes(gzip.compress(data))
    assert framing.unpack(sent) == data
    assert framing.unpack(sent.replace(b"\n", b"\r\n")) == data


@given(data=st.binary(min_size=1), at=st.integers(0), other=st.binary(min_size=1, max_size=20))
def test_an_output_that_was_torn_is_none(data: bytes, at: int, other: bytes) -> None:
    sent = base64.encodebytes(gzip.compress(data, mtime=0))
    at %= len(sent) - 10
    torn = sent[:at] + other + sent[at:]
    # What only adds blanks tears nothing.
    assert framing.unpack(torn) in ({data} if not other.strip() else {None, data})
    if b"[" in other:
        assert framing.unpack(torn) is None


def test_a_block_is_checked_against_its_digest() -> None:
    digest = hashlib.md5(b"data", usedforsecurity=False).hexdigest().encode()
    assert framing.unpack_block(b"ZGF0YQ==\r\n", digest) == b"data"
    assert framing.unpack_block(b"ZGF0YjA=\r\n", digest) is None
    assert framing.unpack_block(b"ZGF", digest) is None


@given(st.integers(1, 200_000))
def test_the_parts_of_blocks_make_up_the_whole(size: int) -> None:
    blocks = framing.blocks_of("o", size)
    while any(block.size > framing.SMALLEST for block in blocks):
        blocks = [part for block in blocks for part in block.parts(size)]
    assert [block.index * block.size for block in blocks] == list(range(0, size, framing.SMALLEST))
    assert blocks[0].parts(size) == [Block("o", 0, framing.SMALLEST)]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("echo $HOME", b"echo $HOME"),
        (["echo", "$HOME", "it's"], b"echo '$HOME' 'it'\"'\"'s'"),
        ("echo \udcff", b"echo \xff"),
    ],
)
def test_a_command_as_the_shell_gets_it(command: str | list[str], text: bytes) -> None:
    assert command_line(command) == text


@pytest.mark.parametrize("command", ["", " \n", [], "a\0"])
def test_a_command_that_no_shell_takes(command: str | list[str]) -> None:
    with pytest.raises(UsageError):
        command_line(command)


END = (
    b"0022\r\n_0123456789:o.\r\nH4sI[    2.000000] usb\r\nA=\r\n_0123456789:s0.\r\nexit\r\n_0123456789:z.\r\n"
)


@pytest.mark.parametrize(
    ("log", "left"),
    [
        (
            b"~ # \x05\x15 sh -c '_a=0123456789;f(){ ...'\r\n_0123456789:r.\r\n" + END,
            b"[    2.000000] usb\r\n",
        ),
        (b"~ #  sh -c '_<{ echo\r\x1b[4mdone'\r\n_0123456789:r.\r\n0022\r\n_0123456789:z.\r\n", b""),
        (
            b"~ #  sh -c '_a=0123456789;f(){ ...'\r\n_0123456789:r.\r\n[    2.000000] usb\r\nAAA",
            b"[    2.000000] usb\r\n",
        ),
        (b"~ #  sh -c '_a=0123456789;f(){\r\n", b""),
        (b"~ #  echo _0123456789\\:1.\r\n_0123456789:1.\r\n", b""),
        (b"~ #  ${vmd-echo _0123456789\\:}12.\r\n_0123456789:12.\r\n", b""),
    ],
)
def test_a_log_reads_without_what_exec_said(log: bytes, left: bytes) -> None:
    assert messages.readable(b"booting\r\n" + log) == b"booting\r\n" + left
    assert messages.readable(b"booting\r\n" + log + b"_:#\r\n").startswith(b"booting\r\n" + left)


def test_a_log_that_starts_in_a_conversation_reads_from_its_end() -> None:
    assert messages.readable(END + b"~ # ls\r\n" + END.replace(b"H4", b"H5")) == (
        b"[    2.000000] usb\r\n~ # ls\r\n" + END.replace(b"H4", b"H5")
    )


def test_a_log_of_others_reads_as_it_is() -> None:
    log = b"~ # sh -c 'echo _a'\r\n_a\r\n[    2.000000] usb: new\r\n~ # ls\r\n"
    assert messages.readable(log) == log


def test_the_end_of_a_log_has_no_empty_lines_after_those_of_systemd() -> None:
    log = b"booting\r\n[  OK  ] Started ssh.service.\r\r\n\r\n[    2.000000] usb: new\r\n"
    assert messages.tail(log, 3) == "[  OK  ] Started ssh.service.\n\n[    2.000000] usb: new"


@pytest.mark.parametrize("shell", ["busybox", "bash", "dash"])
def test_the_second_question_is_answered_whatever_was_lost_of_the_first(shell: str) -> None:
    argv = [shell, "sh"] if shell == "busybox" else [shell]
    first, second = (
        framing.question(TOKEN, number, helper=False).removeprefix(framing.KILL_LINE) for number in (1, 2)
    )
    for cut in range(len(first)):
        for kept in (first[cut:], first[:cut] + first[-1]):
            done = process.run(argv, stdin=(kept + second).encode(), deadline=Deadline.after(30), check=False)
            assert framing.answer(TOKEN, 2).decode() in done.stdout, kept
