"""The interactive GDB: its exact command line, and the lock of the attached GDB."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from vmdebug import attach_lock, process, shipped
from vmdebug.arch import by_name
from vmdebug.attach_lock import Holder, holder
from vmdebug.deadline import Deadline
from vmdebug.debugger import share, startup
from vmdebug.debugger.interactive import Attachment, Extra, argv, program
from vmdebug.debugger.ownership import VmOwner
from vmdebug.errors import HostError, StateError
from vmdebug.guest import Kernel

BARE = Kernel(arch="x86_64", image=Path("/k/bzImage"), origin="a test")
FULL = Kernel(
    arch="x86_64",
    image=Path("/k/bzImage"),
    origin="a test",
    vmlinux=Path("/k/vmlinux"),
    gdb_scripts=Path("/k/scripts here"),
    modules=Path('/k/mod"s'),
    source=Path("/k/source"),
)
VMDEBUG_GDB = str(shipped.gdbinit() / "vmdebug.gdb")

BEFORE = (
    *("-iex", startup.importing("vmd_load", row=by_name("x86_64"))),
    *("-iex", "set debuginfod enabled off"),
    *("-iex", "set index-cache enabled on"),
    *("-iex", "set mi-async on"),
    *("-iex", "set remotetimeout 30"),
    *("-iex", "set auto-load python-scripts off"),
    *("-iex", startup.HOLD_LANGUAGE),
    *("-iex", "set backtrace past-main on"),
)
LOADED = (
    *("-ex", "set auto-load python-scripts on"),
    *("-ex", f"source {VMDEBUG_GDB}"),
    *("-ex", startup.ADAPT),
    *("-ex", startup.RESTORE_LANGUAGE),
)


def test_at_a_prompt_with_everything_there_is() -> None:
    attachment = Attachment(
        endpoint="/run/vm/gdb.sock",
        kernel=FULL,
        accel="kvm",
        kaslr=True,
        program=("pwndbg", "--quiet"),
        extra=(Extra("ex", "bt"), Extra("x", "a file.gdb"), Extra("ex", "p 1")),
        until="start_kernel",
        timeout=30.0,
        init=False,
        force=True,
        panicked=True,
        share=True,
        lock=7,
    )
    assert argv(attachment) == (
        *("pwndbg", "--quiet", "-q", "-nx"),
        *BEFORE,
        *("-iex", "set $vmd_batch = 0"),
        *("-iex", 'set $vmd_accel = "kvm"'),
        *("-iex", "set $vmd_kaslr = 1"),
        *("-iex", "set $vmd_panicked = 1"),
        *("-iex", 'set $vmd_until = "start_kernel"'),
        *("-iex", "set $vmd_timeout = 30"),
        *("-iex", "set $vmd_force = 1"),
        *("-iex", "set $vmd_lock = 7"),
        *("-iex", 'set $vmd_modules_path = "/k/mod\\"s"'),
        "/k/vmlinux",
        *LOADED,
        *("-ex", "vmd-share"),
        *("-ex", "vmd-scripts --lazy /k/scripts here"),
        *("-ex", "vmd-source /k/source"),
        *("-ex", "vmd-connect /run/vm/gdb.sock"),
        *("-ex", "vmd-modules --watch"),
        *("-ex", "vmd-until start_kernel 30"),
        *("-ex", startup.LATER),
        *("-ex", "bt", "-x", "a file.gdb", "-ex", "p 1"),
    )


def test_a_batch_runs_each_command_so_that_a_failure_is_not_lost() -> None:
    attachment = Attachment(
        endpoint="127.0.0.1:1234",
        kernel=BARE,
        extra=(Extra("x", "a file.gdb"), Extra("ex", "bt")),
        batch=True,
        until="start_kernel",
    )
    assert argv(attachment) == (
        *("gdb", "-q", "--batch"),
        *BEFORE,
        *("-iex", "set $vmd_batch = 1"),
        *("-iex", 'set $vmd_accel = "tcg"'),
        *("-iex", 'set $vmd_until = "start_kernel"'),
        *LOADED,
        *("-ex", "vmd-run vmd-connect 127.0.0.1:1234"),
        *("-ex", "vmd-run vmd-until start_kernel"),
        *("-ex", startup.LATER),
        *("-ex", "vmd-run source a file.gdb"),
        *("-ex", "vmd-run bt"),
        *("-ex", "vmd-exit"),
    )


def test_a_program_may_bring_options_of_its_own() -> None:
    assert program("'/opt/my gdb/bin/gdb' -nh") == ("/opt/my gdb/bin/gdb", "-nh")


def test_a_second_one_is_told_who_the_first_is(tmp_path: Path) -> None:
    lock = tmp_path / "nixos" / "attach.lock"
    lock.parent.mkdir()
    with VmOwner.claim(lock, "nixos"):
        assert lock.read_text() == f"{os.getpid()}\n"
        with pytest.raises(StateError) as caught, VmOwner.claim(lock, "nixos"):
            pass
    assert caught.value.message.startswith(f"a GDB is already attached to nixos: pid {os.getpid()} (")
    assert caught.value.hint == f"quit it there, or end it with: kill {os.getpid()}"
    with VmOwner.claim(lock, "nixos"):
        pass


BECOME = """
import sys
from pathlib import Path
from vmdebug.arch import by_name
from vmdebug.attach_lock import Holder, holder
from vmdebug.deadline import Deadline
from vmdebug.debugger.interactive import Attachment, attach
from vmdebug.guest import Kernel
kernel = Kernel(arch="x86_64", image=Path(), origin="")
attach(
    Attachment(endpoint="/no/stub", kernel=kernel, program=(sys.argv[1],)),
    lock=Path(sys.argv[2]), vm="vm",
)
"""


def test_the_lock_goes_with_the_program_and_ends_with_it_even_by_kill_9(tmp_path: Path) -> None:
    lock = tmp_path / "attach.lock"
    stand_in = tmp_path / "gdb"
    stand_in.write_text("#!/bin/sh\necho ready\nexec cat\n")
    stand_in.chmod(0o755)
    become = [sys.executable, "-c", BECOME, str(stand_in), str(lock)]
    with process.spawn(become, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with (
            pytest.raises(StateError, match=f"attached to nixos: pid {child.pid} "),
            VmOwner.claim(lock, "nixos"),
        ):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        with VmOwner.claim(lock, "nixos"):
            pass


@pytest.mark.parametrize(("name", "hint"), [("gdb", "apt install gdb"), ("pwndbg", "leave out --gdb")])
def test_a_gdb_that_is_not_there(name: str, hint: str, tmp_path: Path) -> None:
    become = [sys.executable, "-c", BECOME, name, str(tmp_path / "attach.lock")]
    done = process.run(become, deadline=Deadline.after(20), env={"PATH": str(tmp_path)}, check=False)
    assert done.status == 1
    assert HostError.__name__ in done.stderr
    assert hint in done.stderr


def test_a_persons_gdb_that_is_held_can_be_shared(tmp_path: Path) -> None:
    lock = tmp_path / "attach.lock"
    with VmOwner.claim(lock, "nixos"):
        lock.write_text(f"{os.getpid()}\na person's")
        with pytest.raises(StateError) as caught, VmOwner.claim(lock, "nixos"):
            pass
    assert caught.value.hint.startswith("type `vmd-share` there to share it, or attach with `--share`; or ")


CLAIM = """
import sys
from pathlib import Path
from vmdebug.debugger.ownership import VmOwner
with VmOwner.claim(Path(sys.argv[1]), "nixos", interactive=sys.argv[2] == "person"):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("who", ["person", "program"])
def test_the_program_that_has_stopped_the_guest_is_known_until_it_ends(who: str, tmp_path: Path) -> None:
    lock = tmp_path / "attach.lock"
    assert attach_lock.program(lock) == 0
    words = [sys.executable, "-c", CLAIM, str(lock), who]
    with process.spawn(words, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"claimed\n"
        assert attach_lock.program(lock) == (child.pid if who == "program" else 0)
    assert attach_lock.program(lock) == 0
    with VmOwner.claim(lock, "nixos"):
        assert attach_lock.program(lock) == 0  # not another one


def test_where_a_shared_gdb_lets_scripts_in(tmp_path: Path) -> None:
    lock = tmp_path / "attach.lock"
    assert holder(lock) == Holder()
    lock.write_text("12\n@vmdebug-7\n")
    assert holder(lock) == Holder(pid=12, address="vmdebug-7")


def test_a_shared_gdb_that_has_ended_is_not_shared(tmp_path: Path) -> None:
    lock = tmp_path / "attach.lock"
    lock.write_text("12\n@vmdebug-nobody-listens-here\n")
    assert share.ask(lock, 20) is None
