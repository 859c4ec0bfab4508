from pathlib import Path

import msgspec
import pytest

from tests.unit import kernelfiles
from vmdebug import sources
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Guest, LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report, silent
from vmdebug.sources import own
from vmdebug.sources.nixos import flake, runner


class _ChosenError(Exception):
    """Raised when a source has been chosen, to end the call."""


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Guest]]:
    """The sources that were called, and their guests."""
    asked: list[tuple[str, Guest]] = []
    for module in (flake, runner, own):

        def resolve(
            guest: Guest,
            options: GuestOptions,
            *,
            report: Report,
            deadline: Deadline,
            dry_run: bool = False,
            name: str = module.__name__.rpartition(".")[2],
        ) -> LaunchSpec:
            asked.append((name, guest))
            raise _ChosenError

        monkeypatch.setattr(module, "resolve", resolve)
    return asked


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a guest of each kind."""
    (tmp_path / "result/bin").mkdir(parents=True)
    (tmp_path / "result/bin/run-a-vm").write_text("")
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux/.config").write_text("")
    (tmp_path / "bzImage").write_bytes(kernelfiles.raw_bzimage(b""))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "kind", "module"),
    [
        (".#base", "flake", "flake"),
        ("result", "runner", "runner"),
        ("linux", "tree", "own"),
        ("bzImage", "image", "own"),
        ("builtin", "builtin", "own"),
    ],
)
def test_each_guest_goes_to_the_source_that_knows_it(
    here: Path, chosen: list[tuple[str, Guest]], source: str, kind: str, module: str
) -> None:
    with pytest.raises(_ChosenError):
        sources.resolve(GuestOptions(source=source), report=silent, deadline=Deadline.after(10))
    ((asked, guest),) = chosen
    assert (asked, guest.kind) == (module, kind)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cpus": 0}, "cpus=: Expected `int` >= 1"),
        ({"memory": "2G"}, "memory=: Expected `int"),
        ({"accel": "hvf"}, "accel=: Invalid enum value 'hvf'"),
        ({"gdb_scripts": 1}, "gdb_scripts=: Expected `str"),
    ],
)
def test_the_apis_options_are_held_to_their_types(wrong: dict[str, object], says: str) -> None:
    options = msgspec.structs.replace(GuestOptions(), **wrong)
    with pytest.raises(UsageError, match=says):
        sources.resolve(options, report=silent, deadline=Deadline.after(10))
