"""The names of clones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.vm.clones import clone as cloning
from vmdebug.vm.clones import saved_guest
from vmdebug.vm.clones.saved_guest import SavedGuest


@pytest.mark.usefixtures("runtime")
def test_what_a_clone_cannot_have_is_told_and_not_tried_under_other_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = []

    def refused(_saved: SavedGuest, *, name: str, **_options: Any) -> None:
        names.append(name)
        raise UsageError("port 1234 on 127.0.0.1 is taken")

    monkeypatch.setattr(saved_guest, "start", refused)
    with pytest.raises(UsageError, match="port 1234"):
        cloning._next("vm", cast("SavedGuest", None), (), Deadline.after(5))
    assert names == ["vm-1"]


def test_a_name_that_is_taken_meanwhile_gives_way(monkeypatch: pytest.MonkeyPatch, runtime: Path) -> None:
    names = []

    def taken_once(_saved: SavedGuest, *, name: str, **_options: Any) -> None:
        names.append(name)
        if name == "vm-1":
            runtime.joinpath("vmdebug", name).mkdir(parents=True)
            raise UsageError(f"there is a VM named {name} already")

    monkeypatch.setattr(saved_guest, "start", taken_once)
    try:
        cloning._next("vm", cast("SavedGuest", None), (), Deadline.after(5))
        assert names == ["vm-1", "vm-2"]
    finally:
        runtime.joinpath("vmdebug/vm-1").rmdir()
