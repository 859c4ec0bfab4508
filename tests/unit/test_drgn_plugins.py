"""The plugins of drgn that `vmdebug drgn` names are those that drgn would find by itself."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from vmdebug.drgn_program import plugins

OWN = "[console_scripts]\ndrgn = drgn.cli:_main\n\n[drgn.plugins]\none = drgn.one\ntwo = drgn.deep.two\n"


def installed(directory: Path, package: str, entry_points: str) -> str:
    place = directory / package
    place.mkdir(parents=True)
    (place / "entry_points.txt").write_text(entry_points)
    return str(directory)


def test_they_are_those_that_drgn_finds() -> None:
    found = metadata.entry_points(group="drgn.plugins")
    named = plugins.of_drgn(sys.path)
    assert named is not None
    assert sorted(named) == sorted((each.name, each.value) for each in found)


def test_those_of_one_package_in_its_file(tmp_path: Path) -> None:
    path = ["/nowhere", installed(tmp_path, "drgn-0.3.0.dist-info", f"{OWN}\n[other]\nx = y\n")]
    installed(tmp_path, "other-1.dist-info", "[console_scripts]\ndrgn.plugins = x:y\n")
    assert plugins.of_drgn(path) == [("one", "drgn.one"), ("two", "drgn.deep.two")]


@pytest.mark.parametrize(
    ("package", "entry_points"),
    [
        ("tools-1.dist-info", "[drgn.plugins]\ntools = tools.plugin\n"),
        ("EGG-INFO", ""),
    ],
    ids=["another package has plugins", "an egg"],
)
def test_drgn_looks_for_them_where_there_may_be_others(
    tmp_path: Path, package: str, entry_points: str
) -> None:
    path = [installed(tmp_path / "a", "drgn-0.3.0.dist-info", OWN)]
    assert plugins.of_drgn(path) is not None
    assert plugins.of_drgn([*path, installed(tmp_path / "b", package, entry_points)]) is None


@pytest.mark.parametrize("line", ["one = drgn.one:attribute", "one", "# one"])
def test_drgn_looks_for_them_where_a_line_is_not_understood(tmp_path: Path, line: str) -> None:
    path = [installed(tmp_path, "drgn-0.3.0.dist-info", f"[drgn.plugins]\n{line}\n")]
    assert plugins.of_drgn(path) is None


def test_drgn_looks_for_them_where_modules_are_in_a_zip_file(tmp_path: Path) -> None:
    archive = tmp_path / "modules.zip"
    archive.write_bytes(b"PK")
    own = installed(tmp_path / "a", "drgn-0.3.0.dist-info", OWN)
    assert plugins.of_drgn([own, str(archive)]) is None


def test_the_variables_are_set_for_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRGN_PLUGINS", "DRGN_DISABLE_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(plugins, "of_drgn", lambda _path: [("one", "drgn.one"), ("two", "drgn.two")])
    before = dict(os.environ)
    with plugins.named():
        assert os.environ["DRGN_PLUGINS"] == "one=drgn.one,two=drgn.two"
        assert os.environ["DRGN_DISABLE_PLUGINS"] == "*"
    assert dict(os.environ) == before


def test_what_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRGN_DISABLE_PLUGINS", "crash_commands")
    with plugins.named():
        assert os.environ["DRGN_DISABLE_PLUGINS"] == "crash_commands"
        assert "DRGN_PLUGINS" not in os.environ
