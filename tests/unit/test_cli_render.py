"""Output: data and messages go to different streams; progress is lines without a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from vmdebug.cli import render
from vmdebug.progress import Step


def test_data_goes_to_stdout_and_talk_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    render.put("data")
    render.tell("talk")
    assert capsys.readouterr() == ("data\n", "talk\n")


def test_bytes_come_out_as_they_went_in(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    render.put("first")
    render.put_bytes(b"\xff\x00\r\nno newline")
    assert capfdbinary.readouterr().out == b"first\n\xff\x00\r\nno newline"


def test_facts_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    render.put_json([{"kernel": Path("/boot/vmlinuz"), "vmlinux": None}])
    assert json.loads(capsys.readouterr().out) == [{"kernel": "/boot/vmlinuz", "vmlinux": None}]


def test_facts_for_people_hang_below_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    render.put_facts({"accel": "tcg", "kernel": "bzImage\nfrom a tree", "note": ""})
    assert capsys.readouterr().out.splitlines() == [
        " accel  tcg",
        "kernel  bzImage",
        "        from a tree",
        "  note  ",
    ]


def test_a_table_is_as_wide_as_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    render.put_table(["NAME", "STATUS"], [["a-long-name", "halted"], ["b", "running"]])
    assert capsys.readouterr().out.splitlines() == [
        "NAME         STATUS",
        "a-long-name  halted",
        "b            running",
    ]


def test_plain_progress_writes_a_step_once() -> None:
    stream = io.StringIO()
    report = render.PlainReport(stream, every=3600)
    for done in range(100):
        report(Step("compiling", done, 1000, "init/main.o"))
    report(Step("linking"))
    assert stream.getvalue().splitlines() == ["compiling  0/1000  init/main.o", "linking"]


def test_plain_progress_goes_on_writing_now_and_then() -> None:
    stream = io.StringIO()
    report = render.PlainReport(stream, every=0)
    report(Step("compiling", 1))
    report(Step("compiling", 2))
    assert stream.getvalue().splitlines() == ["compiling  1", "compiling  2"]


def test_without_a_terminal_progress_is_plain_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with render.progress() as report:
        report(Step("unpacking", note="linux.tar.xz"))
    assert capsys.readouterr() == ("", "unpacking  linux.tar.xz\n")
