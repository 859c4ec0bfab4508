"""`vmdebug dap` on real guests: what an editor does."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fixtures.dapclient import DapClient
from vmdebug import restart, vm
from vmdebug.deadline import Deadline
from vmdebug.guest import LaunchSpec
from vmdebug.vm import Vm

OPEN = "do_sys_openat2"


@pytest.fixture
def client(runtime: Path, tmp_path: Path) -> Iterator[DapClient]:
    with DapClient("--log", str(tmp_path / "dap.jsonl")) as client:
        client.ask("initialize", adapterID="test", linesStartAt1=True)
        yield client


def _source(client: DapClient) -> tuple[str, int]:
    """Return the file and the line of do_sys_openat2, by a breakpoint in it."""
    found = client.ask("setFunctionBreakpoints", breakpoints=[{"name": OPEN}])["breakpoints"][0]
    assert found["verified"]
    client.ask("setFunctionBreakpoints", breakpoints=[])
    return found["source"]["path"], found["line"]


def _started(spec: LaunchSpec, *, halt: bool) -> Vm:
    machine = vm.launch(msgspec.structs.replace(spec, name="found", halt=halt), bound=True)
    if not halt:
        machine.exec("true", timeout=120)
    return machine


def _wait_for_gdb_to_end(machine: Vm) -> None:
    """Wait until no GDB holds the guest; that of a killed adapter ends at the end of its input."""
    for pause in Deadline.after(120).pauses("GDB to end"):
        if not restart.attached(machine):
            return
        time.sleep(pause)


def test_a_launched_guest_stops_at_a_line_and_ends_with_the_session(
    client: DapClient, tmp_path: Path
) -> None:
    client.ask("launch", guest="builtin", vm="edited", name="the configuration's title", append="loglevel=1")
    client.event("initialized")
    path, line = _source(client)
    assert Path(path).is_file()
    assert path.endswith("/fs/open.c")
    point = client.ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": line}])["breakpoints"][
        0
    ]
    assert point["verified"]
    client.ask("configurationDone")
    stop = client.event("stopped")
    assert stop["hitBreakpointIds"] == [point["id"]]
    assert client.ask("threads")["threads"] == [{"id": 1, "name": "CPU 0: init (1)"}]
    frames = client.ask("stackTrace", threadId=1)["stackFrames"]
    assert (frames[0]["name"], frames[0]["source"]["path"], frames[0]["line"]) == (OPEN, path, line)
    value = client.ask("evaluate", expression="filename", frameId=frames[0]["id"], context="watch")
    assert value["result"] == '"/init"'
    assert (
        client.ask("evaluate", expression="dfd", frameId=frames[0]["id"], context="repl")["result"] == "-100"
    )
    *scopes, scope = client.ask("scopes", frameId=frames[0]["id"])["scopes"]
    for each in scopes:  # among the globals are per-CPU variables, which GDB cannot read
        assert client.ask("variables", variablesReference=each["variablesReference"])["variables"]
    tasks = client.ask("variables", variablesReference=scope["variablesReference"])["variables"]
    asleep = next(each for each in tasks if each["name"] == "2 kthreadd")
    stack = client.ask("variables", variablesReference=asleep["variablesReference"])["variables"][0]
    assert any(
        each["value"].startswith("kthreadd at ")
        for each in client.ask("variables", variablesReference=stack["variablesReference"])["variables"]
    )
    client.ask("next", threadId=1)
    assert client.event("stopped")["reason"] == "step"
    after = client.ask("stackTrace", threadId=1)["stackFrames"][0]
    assert (after["name"], after["line"] > line) == (OPEN, True)
    client.ask("restart")
    assert client.event("stopped")["hitBreakpointIds"] == [point["id"]]
    client.ask("disconnect")
    assert client.ended() == 0
    assert not vm.names()
    logged = [msgspec.json.decode(line) for line in (tmp_path / "dap.jsonl").read_bytes().splitlines()]
    assert {each["from"] for each in logged} == {"client", "adapter", "to GDB", "GDB"}


def test_a_guest_that_was_found_is_left_as_it_was(client: DapClient, builtin: LaunchSpec) -> None:
    machine = _started(builtin, halt=False)
    try:
        refused = client.refusal("attach", vm=machine.name, kernel="x")
        assert "attach does not take kernel" in refused
        assert "Undefined command" in client.refusal("attach", vm=machine.name, initCommands=["bogus"])
        assert machine.status() == "running"
        client.ask("attach", vm=machine.name)
        client.ask("configurationDone")
        assert client.ask("threads")["threads"] == [{"id": 1, "name": "CPU 0"}]
        assert client.refusal("stackTrace", threadId=1) == "the guest runs: pause it first"
        client.ask("setFunctionBreakpoints", breakpoints=[{"name": "schedule"}])
        assert client.event("stopped")["reason"] == "breakpoint"
        assert "terminate ends only" in client.refusal("terminate")
        assert "belongs to process" in client.refusal("restart")
        assert client.ask("stackTrace", threadId=1)["stackFrames"][0]["name"] == "schedule"
        client.ask("continue", threadId=1)
        assert client.event("stopped")["reason"] == "breakpoint"
        client.ask("disconnect", terminateDebuggee=True)
        assert client.ended() == 0
        assert machine.status() == "running"
    finally:
        machine.stop()


@pytest.mark.parametrize("end", ["input", "SIGTERM", "SIGKILL"])
def test_a_halted_guest_stays_halted_however_the_client_ends(
    client: DapClient, builtin: LaunchSpec, end: str
) -> None:
    machine = _started(builtin, halt=True)
    try:
        client.ask("attach", vm=machine.name)
        client.ask("configurationDone")
        assert client.event("stopped")["reason"] == "entry"
        if end == "input":
            client.end_input()
        else:
            client.child.send_signal(signal.Signals[end])
        client.ended()
        _wait_for_gdb_to_end(machine)
        assert machine.status() in ("halted", "paused")
    finally:
        machine.stop()
