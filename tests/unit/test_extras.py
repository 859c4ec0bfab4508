"""The optional packages: what is said without one, and that every extra is there under its name."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import vmdebug
from vmdebug import extras
from vmdebug.errors import HostError
from vmdebug.extras import Extra

ALL = [each for each in vars(extras).values() if isinstance(each, Extra)]
PACKAGE = Path(vmdebug.__file__).parent


def test_each_extra_is_one_of_pyproject() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert {each.name for each in ALL} == {*project["optional-dependencies"]} - {"dev", "docs"}


def test_a_package_that_is_there_is_returned() -> None:
    assert extras.COV.need("a test").__name__ == "coverage"


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    missing = Extra("lens", "the Python package lens", "vmdebug_no_such_package.part")
    with pytest.raises(HostError) as refused:
        missing.need("vmdebug look", instead="look yourself")
    assert refused.value.message == "vmdebug look needs the Python package lens, which is not installed"
    assert refused.value.hint == "install it: pip install 'vmdebug[lens]'; or look yourself"


def test_a_package_without_the_module_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmdebug_old_package.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(HostError, match="which is too old or broken: No module named") as refused:
        Extra("old", "it", "vmdebug_old_package.part").need("a test")
    assert refused.value.hint == "install it: pip install 'vmdebug[old]'"


def test_no_other_module_spells_how_to_install_one() -> None:
    found = [f"{file}:{line}" for file in sorted(PACKAGE.rglob("*.py")) for line in install_lines(file)]
    assert [each for each in found if "/extras.py:" not in each] == []


def install_lines(file: Path) -> list[int]:
    """Return the lines of a module with a text that says how to install an extra; docstrings are none."""
    tree = ast.parse(file.read_text())
    docs = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    texts = [(each, each.value) for each in ast.walk(tree) if isinstance(each, ast.Constant)]
    return [
        each.lineno
        for each, text in texts
        if isinstance(text, str) and "install 'vmdebug[" in text and id(each) not in docs
    ]
