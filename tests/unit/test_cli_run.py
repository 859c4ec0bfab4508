"""`run`: the arguments of a script, its errors, and their status under `git bisect`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from vmdebug import cli, errors
from vmdebug.channel.log.trouble import Kind, Trouble
from vmdebug.postmortem import Section


class Kernel:
    """Replaces a KernelTrouble: it has the trouble that a test puts into it, and forgets it at a restart."""

    def __init__(self) -> None:
        self.console = SimpleNamespace(troubles=[])
        self.hidden: list[Trouble] = []

    def __call__(self, vm: object) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.console.troubles, self.hidden = [], []

    def all(self) -> tuple[Trouble, ...]:
        return (*self.console.troubles, *self.hidden)


def had(kind: Kind, words: str) -> Trouble:
    return Trouble(kind=kind, headline=words, text=f"the splat of {words}", complete=True)


class Session:
    """Replaces a DebugSession, which the scripts only pass on."""

    status = "running"

    def __init__(self) -> None:
        self.closed = False
        self.vm = self.shell = self
        self.boots: Exception | None = None
        self.notes: tuple[str, ...] = ()
        self.restarted: Callable[[], None] | None = None
        self.kernel = Kernel()
        self.trouble = had
        self.state = SimpleNamespace(spec=SimpleNamespace(kernel=None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def wait(self, _deadline: object) -> None:
        if self.boots is not None:
            raise self.boots


Asked = list[tuple[Any, ...]]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, session: Session) -> Asked:
    calls: Asked = []

    def start(guest: str | None, *, report: object, **options: object) -> Session:
        calls.append(("start", guest, options))
        return session

    def attach(name: str | None, *, force: bool) -> Session:
        calls.append(("attach", name, force))
        return session

    monkeypatch.setattr("vmdebug.session.start", start)
    monkeypatch.setattr("vmdebug.session.attach", attach)
    monkeypatch.setattr("vmdebug.vm.kernel_trouble.KernelTrouble", session.kernel)
    monkeypatch.setattr(
        "vmdebug.postmortem.splats", lambda troubles, _: [Section("", t.text) for t in troubles]
    )
    return calls


Write = Callable[[str], str]


@pytest.fixture
def script(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "check.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def test_a_script_gets_a_session_on_the_default_guest(
    asked: Asked, session: Session, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("""
        def main(session):
            print(session.status)
    """)
    assert cli.status_of(["run", path]) == 0
    assert asked == [("start", None, {})]
    assert capsys.readouterr().out == "running\n"
    assert session.closed


def test_the_guest_and_its_halt_are_handed_on(asked: Asked, script: Write) -> None:
    assert cli.status_of(["run", script("def main(session): pass"), "--guest", ".#base", "--halt"]) == 0
    assert asked == [("start", ".#base", {"halt": True})]


def test_a_name_is_a_vm_that_runs(asked: Asked, script: Write) -> None:
    assert cli.status_of(["run", script("def main(session): pass"), "--name", "base"]) == 0
    assert asked == [("attach", "base", False)]


def test_symbols_of_another_build_by_force(asked: Asked, script: Write) -> None:
    empty = script("def main(session): pass")
    assert cli.status_of(["run", empty, "--name", "base", "--force"]) == 0
    assert cli.status_of(["run", empty, "--force"]) == 0
    assert asked == [("attach", "base", True), ("start", None, {"force": True})]


def test_what_gdb_goes_without_is_said(
    session: Session, asked: Asked, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    session.notes = ("brd: no symbols: no file for it",)
    assert cli.status_of(["run", script("def main(session): pass")]) == 0
    assert "note: brd: no symbols: no file for it" in capsys.readouterr().err


def test_guest_and_name_exclude_each_other(asked: Asked, script: Write) -> None:
    assert cli.status_of(["run", script("def main(session): pass"), "--name", "a", "--guest", "b"]) == 2
    assert asked == []


def test_words_after_the_dashes_are_the_scripts(
    asked: Asked, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("def main(session, args): print(args)")
    assert cli.status_of(["run", path, "--", "-v", "--", "x"]) == 0
    assert capsys.readouterr().out == "['-v', '--', 'x']\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [("def main(session): pass", ["--", "x"]), ("x = 1", []), ("main = 1", [])],
)
def test_a_script_whose_main_does_not_fit_is_a_mistake(
    text: str, words: list[str], asked: Asked, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["run", script(text), *words]) == 2
    assert "main" in capsys.readouterr().err


def test_a_missing_script_starts_nothing(asked: Asked) -> None:
    assert cli.status_of(["run", "nowhere.py"]) == 2
    assert asked == []


def test_what_lies_beside_the_script_can_be_imported(asked: Asked, script: Write, tmp_path: Path) -> None:
    (tmp_path / "vmdebug_test_helper.py").write_text("ANSWER = 42")
    path = script("""
        from vmdebug_test_helper import ANSWER
        def main(session):
            assert ANSWER == 42
    """)
    assert cli.status_of(["run", path]) == 0


def test_a_scripts_error_is_shown_from_the_script_on(
    asked: Asked, session: Session, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("""
        def helper():
            raise KeyError("gone")
        def main(session):
            helper()
    """)
    assert cli.status_of(["run", path]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{path}", line 5, in main'
    assert lines[-1] == "KeyError: 'gone'"
    assert not any("vmdebug/cli" in line for line in lines)
    assert session.closed


def test_an_error_of_ours_keeps_its_status_and_its_hint(
    asked: Asked, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("""
        from vmdebug.deadline import Deadline
        def main(session):
            raise Deadline.after(3).error("a stop", hint="wait longer")
    """)
    assert cli.status_of(["run", path]) == 5
    err = capsys.readouterr().err
    assert f'File "{path}", line 4, in main' in err
    assert "vmdebug: waited 3 s for a stop\n   hint: wait longer\n" in err


def test_a_script_that_cannot_be_parsed(
    asked: Asked, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["run", script("def main(:")]) == 1
    assert "SyntaxError" in capsys.readouterr().err


def test_a_script_may_exit(asked: Asked, script: Write) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.status_of(["run", script("import sys\ndef main(session): sys.exit(7)")])
    assert exit_.value.code == 7


def test_the_timeout_ends_a_script_that_hangs(
    asked: Asked, session: Session, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("""
        import threading
        def main(session):
            threading.Event().wait()
    """)
    assert cli.status_of(["run", path, "--timeout", "0.2"]) == 5
    assert "waited 0.2 s for the script to end" in capsys.readouterr().err
    assert session.closed


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("HostError", 125),
        ("MismatchError", 125),
        ("DeadlineError", 5),
        ("VmError", 1),
    ],
)
def test_bisect_leaves_out_what_it_cannot_judge(error: str, status: int, asked: Asked, script: Write) -> None:
    path = script(f"""
        from vmdebug import errors
        def main(session):
            raise errors.{error}("no")
    """)
    assert cli.status_of(["run", "--bisect", path]) == status


@pytest.mark.parametrize("error", [errors.GuestDiedError("panicked"), errors.DeadlineError("waited")])
def test_bisect_leaves_out_a_guest_that_never_boots(
    error: Exception, asked: Asked, session: Session, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    session.boots = error
    assert cli.status_of(["run", "--bisect", script("def main(session): print('ran')")]) == 125
    out, err = capsys.readouterr()
    assert out == ""
    assert "never booted" in err


def test_bisect_leaves_out_a_guest_that_does_not_start(
    asked: Asked, script: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> None:
        raise errors.LaunchError("QEMU did not start")

    monkeypatch.setattr("vmdebug.session.start", start)
    assert cli.status_of(["run", "--bisect", script("def main(session): pass")]) == 125


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(("words", "status"), [("--bisect", 125), ("--no-halt", 2)])
def test_bisect_leaves_out_a_commit_that_cannot_be_built(
    script: Write,
    words: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Either make fails, or a default of a new option is refused."""

    def build(*_args: object, **_named: object) -> None:
        raise errors.UsageError("with the defaults the kernel cannot boot here")

    monkeypatch.setattr("vmdebug.sources.tree_build.tree_of", lambda _: Path("/linux"))
    monkeypatch.setattr("vmdebug.sources.tree_build.needs_of", lambda _: ())
    monkeypatch.setattr("vmdebug.sources.tree_build.build", build)
    path = script("def main(session): print('ran')")
    assert cli.status_of(["run", "--build", "--guest", "/linux", words, path]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "cannot boot here" in err


def test_a_running_vm_is_built_by_restart(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["run", "--build", "--name", "linux", "x.py"]) == 2
    assert "vmdebug restart linux --build" in capsys.readouterr().err


def test_bisect_passes_a_failing_script_on(asked: Asked, script: Write) -> None:
    assert cli.status_of(["run", "--bisect", script("def main(session): assert False")]) == 1


WARNS = """
    def main(session):
        session.kernel.console.troubles.append(session.trouble("warn", "WARNING: at a"))
        session.kernel.hidden.append(session.trouble("oops", "Oops at b"))
"""


@pytest.fixture
def run_warns(
    asked: Asked, script: Write, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def run(*words: str) -> tuple[int, str]:
        return cli.status_of(["run", script(WARNS), *words]), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (
            [],
            1,
            ["had trouble while the script ran: kernel warn: WARNING: at a (and 1 more)", "--allow warn"],
        ),
        (["--allow", "warn"], 1, ["kernel oops: Oops at b", "the splat of Oops at b"]),
        (["--allow", "warn", "--allow", "oops"], 0, []),
    ],
)
def test_kernel_trouble_fails_a_script_that_passes_over_it(
    run_warns: Callable[..., tuple[int, str]], words: list[str], status: int, told: list[str]
) -> None:
    ended, said = run_warns(*words)
    assert ended == status
    assert all(each in said for each in told)
    assert bool(told) == ("trouble" in said)


def test_the_status_of_the_script_comes_first(
    asked: Asked, session: Session, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script(
        """
        from vmdebug.errors import DeadlineError

        def main(session):
            session.kernel.hidden.append(session.trouble("oops", "Oops at b"))
            raise DeadlineError("late")
        """
    )
    assert cli.status_of(["run", path]) == errors.DeadlineError.exit_status
    assert "kernel oops: Oops at b" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "status"), [([], 1), (["--name", "v"], 0)])
def test_earlier_trouble_counts_for_a_guest_of_the_script_only(
    asked: Asked, session: Session, script: Write, words: list[str], status: int
) -> None:
    session.kernel.console.troubles.append(had("warn", "earlier"))
    session.kernel.hidden.append(had("bug", "earlier, hidden"))
    assert cli.status_of(["run", script("def main(session): pass"), *words]) == status
    session.kernel.console.troubles.append(had("warn", "earlier"))
    late = script(
        "def main(session): session.kernel.console.troubles.append(session.trouble('bug', 'later'))"
    )
    assert cli.status_of(["run", late, *words]) == 1


def test_trouble_before_a_restart_counts(asked: Asked, session: Session, script: Write) -> None:
    path = script(
        """
        def main(session):
            session.kernel.hidden.append(session.trouble("oops", "Oops at b"))
            session.restarted()
        """
    )
    assert cli.status_of(["run", path, "--name", "v"]) == 1
    assert session.restarted is None


def test_a_kind_that_there_is_not_is_a_mistake(
    asked: Asked, script: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["run", script("def main(session): pass"), "--allow", "warm"]) == 2
    assert "did you mean 'warn'?" in capsys.readouterr().err
    assert asked == []
