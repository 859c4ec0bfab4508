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
