"""The spelling of options in messages, for each kind of reader."""

from __future__ import annotations

import pytest

from vmdebug import cli, spelling
from vmdebug.spelling import Spelling, Value, option, spelled


@pytest.mark.parametrize(
    ("reader", "name", "value", "words"),
    [
        (spelling.python, "gdb_scripts", None, "gdb_scripts="),
        (spelling.python, "kernel", "TREE", 'kernel="TREE"'),
        (spelling.python, "force", True, "force=True"),
        (spelling.python, "tcp", 0, "tcp=0"),
        (spelling.command_line, "gdb_scripts", None, "--gdb-scripts"),
        (spelling.command_line, "kernel", "TREE", "--kernel TREE"),
        (spelling.command_line, "force", True, "--force"),
        (spelling.command_line, "kaslr", False, "--no-kaslr"),
        (spelling.command_line, "tcp", 0, "--tcp 0"),
        (spelling.toml, "gdb_scripts", None, "gdb-scripts ="),
        (spelling.toml, "kernel", "../linux", 'kernel = "../linux"'),
        (spelling.toml, "force", True, "force = true"),
        (spelling.toml, "tcp", 0, "tcp = 0"),
    ],
)
def test_each_reader_has_its_own_words(reader: Spelling, name: str, value: Value, words: str) -> None:
    with spelled(reader):
        assert option(name, value) == words


def test_python_is_the_default_and_comes_back() -> None:
    assert option("kernel") == "kernel="
    with spelled(spelling.command_line), spelled(spelling.toml):
        assert option("kernel") == "kernel ="
    assert option("kernel") == "kernel="


def test_the_command_line_spells_its_own_way_for_as_long_as_it_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.status_of(["start", "--kernel", "/nowhere", "--dry-run"]) == 2
    assert "--kernel /nowhere: /nowhere does not exist" in capsys.readouterr().err
    assert option("kernel") == "kernel="
