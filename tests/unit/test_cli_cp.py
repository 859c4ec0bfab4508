"""`cp`: its arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit import cli_doubles
from vmdebug import cli


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `put` and `get` were called with, and for which VM."""
    calls: list[tuple[Any, ...]] = []

    def find(name: str | None) -> object:
        calls.append((name,))
        return cli_doubles.machine()

    def record(way: str) -> Any:
        def call(shell: object, sources: Sequence[object], to: object, **_: object) -> None:
            calls[-1] = (way, *calls[-1], sources, to)

        return call

    monkeypatch.setattr("vmdebug.vm.find", find)
    monkeypatch.setattr("vmdebug.channel.files.put.put", record("put"))
    monkeypatch.setattr("vmdebug.channel.files.get.get", record("get"))
    return calls


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["a", "base:/tmp"], ("put", "base", ["a"], "/tmp")),
        (["a", "b/c:d", "./e:f", ":dir"], ("put", None, ["a", "b/c:d", "./e:f"], "dir")),
        (["base:/x", "."], ("get", "base", ["/x"], Path())),
        (["base:/x", "base:y:z", "to/"], ("get", "base", ["/x", "y:z"], Path("to"))),
    ],
)
def test_paths_of_the_guest_have_its_name(
    called: list[tuple[Any, ...]], words: list[str], call: tuple[Any, ...]
) -> None:
    assert cli.status_of(["cp", *words]) == 0
    assert called == [call]


def test_a_dash_is_a_standard_stream(
    called: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    with Path("/dev/null").open() as null:
        monkeypatch.setattr(sys, "stdin", null)
        assert cli.status_of(["cp", "-", "base:/x"]) == 0
        assert called == [("put", "base", [null.fileno()], "/x")]
    called.clear()
    assert cli.status_of(["cp", "base:/x", "-"]) == 0
    [(_, _, _, sink)] = called
    sink(b"data")
    assert capfdbinary.readouterr().out == b"data"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "a source and a destination"),
        (["a", "b"], "no path is in a guest"),
        (["a:x", "b:y"], "between this machine and one guest"),
        (["a:x", "y", "b:z"], "between this machine and one guest"),
        (["a:x", "b:y", "z"], "between this machine and one guest"),
        (["-", "a", "b:y"], "standard input is one file"),
        (["a:x", "a:y", "-"], "standard output takes one file"),
    ],
)
def test_other_words_are_refused(
    called: list[tuple[Any, ...]], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["cp", *words]) == 2
    assert message in capsys.readouterr().err
    assert called == []
