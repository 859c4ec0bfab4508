"""The names of clones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine, Share
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


def test_what_to_do_about_a_directory_that_is_shared(tmp_path: Path) -> None:
    kernel = Kernel(image=tmp_path, vmlinux=None, arch="x86_64", origin="a test")
    share = Share(directory=tmp_path, mount_point="/w", mode="ro", transport="9p", tag="t")
    spec = LaunchSpec(name="vm", guest="vm", machine=OwnMachine(), kernel=kernel)
    assert cloning._instead(spec) == "start another one: vmdebug start"
    hint = cloning._instead(msgspec.structs.replace(spec, shares=(share,)))
    assert 'root_image="always"' in hint
    assert "vmdebug cp" in hint
