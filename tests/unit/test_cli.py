"""The command line: errors and exit statuses, the table of commands, the cost of `--help`."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import types
from pathlib import Path

import pytest
import typer

from vmdebug import cli, errors, process, spelling
from vmdebug.cli import app
from vmdebug.deadline import Deadline

HEAVY = ("rich", "msgspec", "asyncio", "qemu.qmp", "pexpect", "pygdbmi", "elftools", "vmdebug.session")


def failing(error: BaseException) -> object:
    def run(words: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UsageError("wrong"), 2),
        (errors.HostError("lacks"), 3),
        (errors.MismatchError("differs"), 4),
        (errors.DeadlineError("late"), 5),
        (errors.GuestDiedError("panicked"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/run/x"), 3),
        (ZeroDivisionError("oops"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_errors_exit_status(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "run", failing(error))
    assert cli.status_of(["start"]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_while_the_verbs_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str, *_: object) -> None:
        if name == app.__name__:
            raise KeyboardInterrupt

    finder = types.SimpleNamespace(find_spec=interrupted)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, app.__name__)
    monkeypatch.delattr(cli, "app")
    assert cli.status_of(["status"]) == cli.INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_an_error_is_a_line_of_what_a_line_of_what_to_do_and_the_evidence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = errors.LaunchError("QEMU did not start", hint="read its words", detail="qemu -x\nstatus 1")
    monkeypatch.setattr(app, "run", failing(error))
    cli.status_of(["start"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "vmdebug: QEMU did not start\n   hint: read its words\n      | qemu -x\n      | status 1\n"
    )


@pytest.mark.parametrize("words", [["--debug", "start"], ["--version", "--debug"]])
def test_debug_before_the_verb_shows_the_traceback(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "run", failing(errors.HostError("lacks")))
    with pytest.raises(errors.HostError):
        cli.status_of(words)


def test_debug_after_the_verb_belongs_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMDEBUG_DEBUG", raising=False)
    monkeypatch.setattr(app, "run", failing(errors.HostError("lacks")))
    assert cli.status_of(["exec", "--", "dmesg", "--debug"]) == 3


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["strat"], "there is no verb 'strat'", "did you mean `vmdebug start`?"),
        (["doctor", "--jsn"], "no such option: --jsn", "`vmdebug doctor --help`"),
        (["start", "--append"], "option '--append' requires an argument", "`vmdebug start --help`"),
        (["start", "--cpus", "none"], "--cpus", "`vmdebug start --help`"),
        (["kernel"], "missing command", "`vmdebug kernel --help`"),
        (["exec"], "no command to run", "vmdebug exec NAME -- uname -a"),
        (["stop", "--all", "one"], "--all takes no names", "give either"),
    ],
)
def test_a_mistake_in_the_words_ends_with_2(
    words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(words) == 2
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert message in first
    assert hint in second


def test_without_words_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of([]) == 0
    assert "Usage: vmdebug" in capsys.readouterr().out


@pytest.mark.parametrize("name", app.VERBS)
def test_the_table_of_verbs_says_what_each_ones_help_says(name: str) -> None:
    command = typer.main.get_command(importlib.import_module(f"vmdebug.cli.{name.replace('-', '_')}").app)
    assert (command.help or "").splitlines()[0] == app.VERBS[name]


@pytest.mark.parametrize("name", app.VERBS)
def test_every_verb_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    groups = {"cov": ["report"], "kernel": ["build"], "recording": ["list"], "snapshot": ["save"]}
    inner = groups.get(name, [])
    assert cli.status_of([name, *inner, "--help"]) == 0
    assert f"vmdebug {' '.join([name, *inner])}" in capsys.readouterr().out.partition("Examples:")[2]


def test_help_imports_nothing_heavy() -> None:
    # Modules that typer itself imports do not count.
    code = (
        "import sys, typer; before = set(sys.modules)\n"
        "from vmdebug import cli; cli.status_of(['--help'])\n"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    done = process.run([sys.executable, "-c", code], deadline=Deadline.after(60))
    assert "Usage: vmdebug" in done.stdout
    assert not set(done.stderr.split()) & set(HEAVY)


def test_ctrl_c_is_handled_before_anything_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "from vmdebug.cli import main; print(*sorted(set(sys.modules) - before))"
    )
    done = process.run([sys.executable, "-c", code], deadline=Deadline.after(60))
    assert set(done.stdout.split()) <= {"__future__", "errno", "vmdebug", "vmdebug.cli"}


def test_ctrl_c_while_python_creates_a_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(app, "run", lambda _: type("Class", (), {"attribute": Interrupting()}))
    assert cli.status_of(["start"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "vmdebug.cli", "--help"]
    with os.fdopen(write, "wb") as stdout, process.spawn(argv, stdout=stdout, stderr=process.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.read() == b""
        assert child.wait(60) == cli.PIPE_CLOSED


@pytest.mark.parametrize(
    ("words", "streams", "status", "said"),
    [
        ("status", "2>/dev/full", 3, ""),
        ("exec nope -- true", "2>/dev/full", 2, ""),
        ("exec nope -- true", ">/dev/full 2>/dev/full", 2, ""),
        ("status --json", "2>/dev/full", 0, ""),
        (
            "status --json",
            ">/dev/full",
            3,
            "cannot write standard output, /dev/full: No space left on device",
        ),
        (
            "status --help",
            ">/dev/full",
            3,
            "No space left on device",
        ),
        ("status --help", ">/dev/full 2>/dev/full", 3, ""),
    ],
)
def test_streams_that_cannot_be_written(
    runtime: Path, words: str, streams: str, status: int, said: str
) -> None:
    line = f"{sys.executable} -m vmdebug.cli {words} {streams}"
    done = process.run(["sh", "-c", line], deadline=Deadline.after(60), check=False)
    assert done.status == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_dev_null(closed: str) -> None:
    program = f"{sys.executable} -m vmdebug.cli"
    script = f"{program} --version {closed} && {program} strat {closed}; echo $?"
    done = process.run(["sh", "-c", script], deadline=Deadline.after(60))
    assert done.stdout.splitlines()[-1] == "2"  # a usage error, in each case
    assert "internal error" not in done.stderr


def test_nearest_word() -> None:
    assert spelling.nearest("consle", app.VERBS) == "console"
    assert spelling.nearest("xyzzy", app.VERBS) == ""


def test_text_is_taken_as_it_is_typed() -> None:
    # typer 0.29 coerces values with pydantic, which doubles the time of a verb: requirements.txt has 0.28.
    code = (
        "import sys; from vmdebug import cli\n"
        "status = cli.status_of(['stop', 'no-such-vm'])\n"
        "print(status, 'pydantic' in sys.modules)"
    )
    assert process.run([sys.executable, "-c", code], deadline=Deadline.after(60)).stdout == "2 False\n"
