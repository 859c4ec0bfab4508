"""`trace`: its words, and what it prints."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from typing import Any, Self

import pytest

from vmdebug import cli
from vmdebug.cli import trace as verb
from vmdebug.debugger.runstate import State
from vmdebug.debugger.trace import Call, Hit, Probe, Task

READ = Hit("vfs_read", {"count": 1, "file": 0xFFFF888000000000}, 0.25, 1.5, 1, Task(45, "dd"), ret=-11)
NAMED = Hit("open", {"name": "/x", "gone": None}, 1.0, None, 0, None, (Call("open", 16, "/s/o.c", 7),))


class Hits(list[Hit]):
    """A trace that gives its hits one after another."""

    notes = ("no return value",)

    def __init__(self, given: Sequence[Hit]) -> None:
        super().__init__()
        self._given = list(given)
        self.full = False
        self.interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self += self._given
        self._given.clear()

    def take(self) -> list[Hit]:
        if self.interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            return []
        fresh = self._given[:1]
        del self._given[:1]
        self += fresh
        self.full = not self._given
        return fresh


class Session:
    """A session whose GDB is itself."""

    state = State.RUNNING
    notes = ("symbols of another build",)

    def __init__(self, hits: Hits) -> None:
        self.hits = hits
        self.asked: tuple[Any, ...] = ()
        self.closed = False
        self.forced = False
        self.gdb = self

    def trace(self, probes: tuple[Probe, ...], **options: Any) -> Hits:
        self.asked = (probes, options)
        return self.hits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    made = Session(Hits([READ, NAMED]))
    monkeypatch.setattr(verb, "FETCH_SECONDS", 0)
    monkeypatch.setattr("vmdebug.vm.names", lambda: ["vm"])

    def attach(name: str | None, *, force: bool) -> Session:
        assert name in (None, "vm")
        made.forced = force
        return made

    monkeypatch.setattr("vmdebug.session.attach", attach)
    return made


def test_text(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "vm", "vfs_read:count,file", "open"]) == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["0.250000", "cpu1", "dd:45", "vfs_read", "count=1", "file=0xffff888000000000", "=", "-11"],
        ["1.000000", "cpu0", "?", "open", 'name="/x"', "gone=?"],
        ["#0", "open", "at", "/s/o.c:7"],
    ]
    said = ["symbols of another build", "no return value", "2 hits"]
    assert err.splitlines() == ["reading the kernel's symbols", "tracing; Ctrl-C ends it", *said]
    probes, options = session.asked
    assert probes == (Probe("vfs_read", ("count", "file")), Probe("open"))
    assert options == {"when": "", "count": None, "backtrace": False, "ret": False}
    assert session.closed


def test_json_is_an_object_a_line(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trace", "open", "--json", "--when", "x > 1", "--count", "9", "--backtrace", "--ret"]
    assert cli.status_of(words) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["task"], first["args"]["count"], first["ret"]) == ({"pid": 45, "comm": "dd"}, 1, -11)
    assert second["backtrace"] == [{"function": "open", "pc": 16, "file": "/s/o.c", "line": 7}]
    assert session.asked[1] == {"when": "x > 1", "count": 9, "backtrace": True, "ret": True}


def test_chrome_is_an_array_of_events(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "open", "--format", "chrome"]) == 0
    events = json.loads(capsys.readouterr().out)
    assert [event["ph"] for event in events] == ["M", "i", "M", "i", "M"]
    assert events[0]["args"] == {"name": "dd"}
    assert (events[1]["name"], events[1]["ts"], events[1]["tid"]) == ("vfs_read", 250000.0, 45)
    assert events[1]["args"]["ret"] == -11
    assert events[3]["args"]["backtrace"] == ["open"]


def test_going_on_with_symbols_of_another_build(session: Session) -> None:
    assert cli.status_of(["trace", "open"]) == 0
    assert not session.forced
    assert cli.status_of(["trace", "open", "--force"]) == 0
    assert session.forced


def test_ctrl_c_keeps_what_came(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.hits.interrupted = True
    assert cli.status_of(["trace", "open"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert err.splitlines()[-1] == "2 hits"
    assert session.closed


def test_the_time_is_up(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["trace", "open", "--timeout", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_guest_that_stops_by_itself(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.state = State.GONE
    assert cli.status_of(["trace", "open"]) == 0
    assert "the guest is gone" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--format", "xml"], ["--json", "--format", "text"], [":count"]])
def test_words_that_cannot_be_right(
    session: Session, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.status_of(["trace", *words, "open"]) == 2
    assert "hint" in capsys.readouterr().err
