"""Real editors debug a guest: a breakpoint in fs/open.c, launch, read a variable, step, disconnect."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.fixtures.dapclient import environment
from vmdebug import process, sources, vm
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.faces import editors
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent

HERE = Path(__file__).parent
SECONDS = 300.0

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture(scope="session")
def place() -> tuple[Path, int]:
    """The source file of do_sys_openat2 and the line of its first statement."""
    spec = sources.resolve(GuestOptions(), report=silent, deadline=Deadline.after(SECONDS))
    assert spec.kernel.source is not None
    path = spec.kernel.source / "fs/open.c"
    lines = path.read_text().splitlines()
    start = next(
        number for number, line in enumerate(lines) if re.match(r"static long do_sys_openat2\(", line)
    )
    return path, next(n for n, line in enumerate(lines[start:], start + 1) if "build_open_flags" in line)


@pytest.fixture
def wanted(tmp_path: Path) -> editors.Wanted:
    """The configuration of an editor that starts the vmdebug of this tree, with a log."""
    words = (sys.executable, "-P", "-m", "vmdebug.cli")
    script = tmp_path / "vmdebug"
    script.write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@" --log {tmp_path}/dap.jsonl\n')
    script.chmod(0o755)
    return editors.Wanted(guest="builtin", command=(str(script),))


def _nvim() -> Path:
    found = shutil.which("nvim", path=os.environ.get("VMDEBUG_TEST_NVIM", ""))
    assert found is not None, "run it with: make test-editors"
    return Path(found)


def test_neovim(wanted: editors.Wanted, place: tuple[Path, int], tmp_path: Path) -> None:
    path, line = place
    configuration = tmp_path / "vmdebug.lua"
    configuration.write_text(editors.nvim(wanted)[0].text)
    result = tmp_path / "seen.json"
    env = {
        **environment(),
        "VMD_NVIM_DAP": os.environ["VMDEBUG_TEST_NVIM_DAP"],
        "VMD_CONFIGURATION": str(configuration),
        "VMD_FILE": str(path),
        "VMD_LINE": str(line),
        "VMD_RESULT": str(result),
        "VMD_TITLE": "vmdebug: start a guest",
        "VMD_VM": "neovim",
        "XDG_STATE_HOME": str(tmp_path),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
    }
    argv = (_nvim(), "--headless", "-u", "NONE", "-i", "NONE", "-S", HERE / "neovim.lua")
    process.run(argv, env=env, deadline=Deadline.after(SECONDS))
    seen = json.loads(result.read_text())
    assert seen["reasons"][0] == ["do_sys_openat2", line, str(path)]
    assert seen["filename"] == '"/init"'
    assert seen["reasons"][1][0] == "do_sys_openat2"
    assert seen["reasons"][1][1] > line
    _check_log(tmp_path / "dap.jsonl")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of an adapter that listens."""
    argv = (
        sys.executable,
        "-P",
        "-m",
        "vmdebug.cli",
        "dap",
        "--port",
        "0",
        "--log",
        str(tmp_path / "dap.jsonl"),
    )
    with process.spawn(argv, env=environment(), stderr=process.PIPE) as child:
        assert child.stderr is not None
        assert wait_ready(child.stderr.fileno(), seconds=SECONDS)
        yield int(child.stderr.readline().rpartition(b":")[2])


def test_the_library_of_vs_code(port: int, place: tuple[Path, int], tmp_path: Path) -> None:
    path, line = place
    result = tmp_path / "seen.json"
    env = {
        **os.environ,
        "NODE_PATH": os.environ["VMDEBUG_TEST_NODE_MODULES"],
        "VMD_PORT": str(port),
        "VMD_FILE": str(path),
        "VMD_LINE": str(line),
        "VMD_VM": "vscode",
        "VMD_RESULT": str(result),
    }
    process.run(["node", HERE / "vscode.js"], env=env, deadline=Deadline.after(SECONDS))
    seen = json.loads(result.read_text())
    assert seen["frame"] == ["do_sys_openat2", line, str(path)]
    assert (seen["filename"], seen["step"]) == ('"/init"', "step")
    assert seen["scopes"][-1] == "Tasks"
    _check_log(tmp_path / "dap.jsonl")


def _debian() -> Path:
    """The root of Debian's packages of Helix and Emacs, which are unpacked, not installed."""
    return Path(os.environ["VMDEBUG_TEST_DEBIAN"])


def _cache() -> str:
    return os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))


def test_emacs(wanted: editors.Wanted, place: tuple[Path, int], tmp_path: Path) -> None:
    path, line = place
    configuration = tmp_path / "vmdebug.el"
    configuration.write_text(editors.emacs(wanted)[0].text)
    result = tmp_path / "seen.json"
    share = next((_debian() / "usr/share/emacs").glob("[0-9]*"))
    lisp = [share / "lisp", *(each for each in (share / "lisp").rglob("*") if each.is_dir())]
    dape = next((_debian() / "usr/share/emacs/site-lisp/elpa-src").glob("dape-*"))
    env = {
        **environment(),
        "EMACSLOADPATH": ":".join(map(str, [*lisp, dape])),
        "EMACSDATA": str(share / "etc"),
        "EMACSDOC": str(share / "etc"),
        "VMD_CONFIGURATION": str(configuration),
        "VMD_FILE": str(path),
        "VMD_LINE": str(line),
        "VMD_RESULT": str(result),
        "VMD_TITLE": "vmdebug-start-a-guest",
        "VMD_VM": "emacs",
    }
    argv = (_debian() / "usr/bin/emacs-nox", "-Q", "--batch", "-l", HERE / "emacs.el")
    process.run(argv, env=env, deadline=Deadline.after(SECONDS))
    seen = json.loads(result.read_text())
    assert seen["trouble"] is None
    assert seen["frames"][0] == ["do_sys_openat2", line, str(path)]
    assert (seen["filename"], seen["timeout"]) == ('"/init"', 300)
    assert seen["frames"][1][0] == "do_sys_openat2"
    assert seen["frames"][1][1] > line
    _check_log(tmp_path / "dap.jsonl")


def test_helix(wanted: editors.Wanted, place: tuple[Path, int], tmp_path: Path) -> None:
    """Its keys, typed at a terminal: a breakpoint at the cursor, a template, a step, the end."""
    path, line = place
    project, log = tmp_path / "project", tmp_path / "dap.jsonl"
    (project / ".helix").mkdir(parents=True)
    (project / ".helix/languages.toml").write_text(editors.helix(wanted)[0].text)
    env = {**environment(), "HOME": str(tmp_path), "XDG_CACHE_HOME": _cache(), "TERM": "xterm"}
    helix = pexpect.spawn(
        str(_debian() / "usr/bin/hx"), [f"{path}:{line}"], cwd=str(project), env=env, dimensions=(40, 120)
    )
    try:
        helix.expect("do_sys_openat2", timeout=SECONDS)
        _debug(helix, "b")
        helix.send(":debug-start 'vmdebug: start a guest'\r")
        _logged(log, helix, "stopped", 1)
        _debug(helix, "n")
        _logged(log, helix, "stopped", 2)
        _debug(helix, "t")
        _logged(log, helix, "terminated", 1)
        helix.send(":q!\r")
        helix.expect(pexpect.EOF, timeout=SECONDS)
    finally:
        helix.close(force=True)
    answers = [each for each in _messages(log, "adapter") if each.get("command") == "stackTrace"]
    tops = [each["body"]["stackFrames"][0] for each in answers]
    assert (tops[0]["name"], tops[0]["line"], tops[0]["source"]["path"]) == (
        "do_sys_openat2",
        line,
        str(path),
    )
    assert tops[-1]["line"] > line
    _check_log(log)


def _debug(helix: Any, key: str) -> None:
    """Type a key of the debug menu, and leave the menu."""
    helix.send(f" G{key}")
    helix.send("\x1b")
    # A terminal tells Escape from Alt by what follows, and when.
    helix.expect([pexpect.TIMEOUT], timeout=1)


def _messages(log: Path, sender: str) -> list[dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    # The last line may not be complete yet.
    messages = [json.loads(each) for each in lines if each.endswith("}}")]
    return [each["message"] for each in messages if each["from"] == sender]


def _logged(log: Path, helix: Any, event: str, count: int) -> None:
    """Wait until the adapter has sent so many events; meanwhile read what Helix draws, or it would block."""
    for pause in Deadline.after(SECONDS).pauses(f"{event} {count} in {log}"):
        if sum(each.get("event") == event for each in _messages(log, "adapter")) >= count:
            return
        helix.expect([pexpect.TIMEOUT], timeout=pause)


def _check_log(log: Path) -> None:
    """Check the protocol's log: the client's requests succeeded, and the guest has ended with the session."""
    messages: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    answers = [each["message"] for each in messages if each["from"] == "adapter"]
    refused = [each for each in answers if each["type"] == "response" and not each["success"]]
    assert refused == []
    asked = [each["message"]["command"] for each in messages if each["from"] == "client"]
    assert asked[:2] == ["initialize", "launch"]
    assert asked[-1] == "disconnect"
    assert not vm.names()
