"""A GDB works whatever the person's gdbinit sets, and whatever the environment has for other Pythons."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.gdb.bareguest import Bare, soon
from vmdebug import process
from vmdebug.debugger import startup
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.interactive import Attachment, Extra, argv
from vmdebug.guest import Kernel
from vmdebug.process import Completed

BROKEN = 'raise ImportError("a module for another Python")\n'


def attached(bare: Bare, program: Path, home: Path, gdbinit: str, command: str = "print $cs") -> Completed:
    """Run the GDB of `vmdebug attach` on the bare guest, with a gdbinit and a command."""
    (home / ".gdbinit").write_text(gdbinit)
    kernel = Kernel(arch="x86_64", image=program, origin="a test", vmlinux=program)
    words = argv(
        Attachment(endpoint=str(bare.endpoint), kernel=kernel, batch=True, extra=(Extra("ex", command),))
    )
    env = {**startup.environment(), "HOME": str(home), "LC_ALL": "C.UTF-8"}
    return process.run(words, env=env, deadline=soon(), check=False)


@pytest.mark.parametrize(
    ("setting", "undone"),
    [
        ("set non-stop on", "set non-stop off: the gdbstub stops all CPUs at once"),
        ("set architecture i8086", "set architecture auto: with i8086 GDB cannot read the guest's registers"),
        ("set architecture i386", "set architecture auto: with i386 GDB cannot read the guest's registers"),
        ("set endian big", "set endian auto: with big GDB cannot read the guest's memory"),
        ("set language pascal", "set language auto: with pascal the kernel's GDB scripts fail"),
    ],
)
def test_a_setting_with_which_gdb_cannot_work_is_undone_and_said(
    bare: Bare, program: Path, tmp_path: Path, setting: str, undone: str
) -> None:
    done = attached(bare, program, tmp_path, f"{setting}\n")
    assert done.status == 0, done.stderr
    assert undone in done.stderr
    assert "$1 = " in done.stdout


@pytest.mark.parametrize("setting", ["set architecture i386:x86-64", "set language c", "set pagination off"])
def test_other_settings_stay_without_a_word(bare: Bare, program: Path, tmp_path: Path, setting: str) -> None:
    done = attached(bare, program, tmp_path, f"{setting}\n")
    assert done.status == 0, done.stderr
    assert "set " not in done.stderr


@pytest.mark.parametrize(
    ("setting", "shown"),
    [("", '"auto; currently c"'), ("set language c", '"c"'), ("set language pascal", '"auto; currently c"')],
)
def test_the_language_is_the_users_or_automatic(
    bare: Bare, program: Path, tmp_path: Path, setting: str, shown: str
) -> None:
    done = attached(bare, program, tmp_path, f"{setting}\n", "show language")
    assert done.status == 0, done.stderr
    assert f"The current source language is {shown}." in done.stdout


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONHOME"])
def test_variables_for_another_python_do_not_reach_that_of_gdb(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "enum.py").write_text(BROKEN)
    monkeypatch.setenv(name, str(tmp_path))
    with Gdb.start(program, timeout=60) as gdb:
        assert gdb.pid
    assert name in os.environ
    assert name not in startup.environment()


def test_a_hook_that_fails_at_the_first_stop_does_not_prevent_attaching(
    bare: Bare, program: Path, tmp_path: Path
) -> None:
    """Those of gef ask the gdbstub for files of /proc, which QEMU's does not serve."""
    hook = 'define target hookpost-remote\npython raise gdb.error("no files here")\nend\n'
    done = attached(bare, program, tmp_path, hook)
    assert done.status == 0, done.stderr
    assert "a hook of your gdbinit failed at the first stop: " in done.stderr
    assert "$1 = " in done.stdout
