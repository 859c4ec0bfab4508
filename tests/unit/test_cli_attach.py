"""`attach`: from the arguments to GDB's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit import cli_doubles
from vmdebug import cli
from vmdebug.debugger.interactive import Attachment, Extra


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Attachment, dict[str, Any]]]:
    calls: list[tuple[Attachment, dict[str, Any]]] = []
    monkeypatch.setattr("vmdebug.vm.find", lambda name: cli_doubles.machine(name or "only"))
    monkeypatch.setattr(
        "vmdebug.debugger.interactive.attach", lambda what, **where: calls.append((what, where))
    )
    return calls


def test_without_words_it_is_the_one_vm_and_gdb(attached: list[tuple[Attachment, dict[str, Any]]]) -> None:
    assert cli.status_of(["attach"]) == 0
    assert attached == [
        (
            Attachment(
                endpoint="/run/vmdebug/only/gdb.sock", kernel=cli_doubles.KERNEL, accel="tcg", kaslr=False
            ),
            {"lock": Path("/run/vmdebug/only/attach.lock"), "vm": "only"},
        )
    ]


def test_files_and_commands_keep_their_order(attached: list[tuple[Attachment, dict[str, Any]]]) -> None:
    words = [
        "attach",
        "vm",
        "-ex",
        "bt",
        "-x",
        "a.gdb",
        "-ex",
        "-exec-run",
        "--batch",
        "-x",
        "b.gdb",
        "-ex=q",
    ]
    assert cli.status_of(words) == 0
    assert attached[0][0].extra == (
        Extra("ex", "bt"),
        Extra("x", "a.gdb"),
        Extra("ex", "-exec-run"),
        Extra("x", "b.gdb"),
        Extra("ex", "q"),
    )
    assert attached[0][0].batch


def test_the_rest_of_its_options(attached: list[tuple[Attachment, dict[str, Any]]]) -> None:
    words = [
        "attach",
        "--until",
        "start_kernel",
        "--timeout",
        "60",
        "--gdb",
        "pwndbg --quiet",
        "-nx",
        "--force",
    ]
    assert cli.status_of(words) == 0
    what = attached[0][0]
    assert (what.until, what.timeout) == ("start_kernel", 60.0)
    assert what.program == ("pwndbg", "--quiet")
    assert not what.init
    assert what.force


def test_a_timeout_without_until_is_a_mistake(attached: list[tuple[Attachment, dict[str, Any]]]) -> None:
    assert cli.status_of(["attach", "--timeout", "5"]) == 2
    assert attached == []


def test_a_batch_is_not_shared(attached: list[tuple[Attachment, dict[str, Any]]]) -> None:
    assert cli.status_of(["attach", "--share", "--batch"]) == 2
    assert attached == []
    assert cli.status_of(["attach", "--share"]) == 0
    assert attached[0][0].share
