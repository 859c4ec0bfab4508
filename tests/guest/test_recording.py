"""A real guest is recorded with commands in it, and each replay does the same."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from pathlib import Path

import pytest

from tests.fixtures.accel import SECONDS
from tests.fixtures.dapclient import DapClient
from vmdebug import replaying, session
from vmdebug.cli import status_of
from vmdebug.errors import GuestDiedError, HostError, StateError
from vmdebug.faces.dap.wire import Message
from vmdebug.recording import ending, files
from vmdebug.session import DebugSession
from vmdebug.vm import runtime_directory
from vmdebug.vm.state import State

MEMORY_MIB = 192
TYPED = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of a boot, a command, a copy, a typed line and a panic."""
    place = tmp_path_factory.mktemp("recordings")
    runtime = tmp_path_factory.mktemp("run", numbered=True)
    runtime.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        with session.start(
            "builtin", name="vm", memory=MEMORY_MIB, record=place / "vm", timeout=SECONDS
        ) as guest:
            assert guest.recording == place / "vm.vmdrec"
            for refused in (guest.snapshot, guest.restore, guest.vm.delete_snapshot):
                with pytest.raises(
                    StateError, match="vm is recorded, and a recording cannot go back to a snapshot"
                ):
                    refused("a")
            assert guest.exec("cat", stdin=TYPED, timeout=SECONDS, check=True).stdout == TYPED
            (place / "file").write_bytes(bytes(range(256)))
            guest.put(place / "file", "/tmp/file", timeout=SECONDS)
            summed = guest.exec("sha256sum /tmp/file", timeout=SECONDS, check=True).stdout.split()[0]
            assert summed == hashlib.sha256(bytes(range(256))).hexdigest()
            guest.console.wait_ready(timeout=SECONDS)
            guest.console.sendline(f"echo {TYPED} | md5sum")
            guest.console.expect(hashlib.md5(f"{TYPED}\n".encode()).hexdigest(), timeout=SECONDS)  # noqa: S324
            with contextlib.suppress(GuestDiedError):
                guest.exec("echo c >/proc/sysrq-trigger", timeout=SECONDS)
    return place / "vm.vmdrec"


def test_a_launch_that_fails_leaves_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        if isinstance(value, State):
            assert files.manifest(tmp_path / "vm.vmdrec").exists()
            raise runtime_directory.host_error(f"write {path}", OSError(errno.ENOSPC, ""))

    monkeypatch.setattr("vmdebug.vm.state.write", full)
    with pytest.raises(HostError, match="No space left on device"):
        session.start("builtin", name="vm", record=tmp_path / "vm", timeout=SECONDS)
    assert not list(tmp_path.iterdir())


def replay(recorded: Path, to: str | int = "end") -> DebugSession:
    return session.replay(recorded, to=to, name="again", timeout=2 * SECONDS)


def state_of(session: DebugSession) -> tuple[bytes, int, str]:
    """Return the serial log, the instruction count, and a hash of the guest's memory."""
    run = session.vm.rundir
    file = run.path / "memory"
    session.vm.qmp("pmemsave", timeout=SECONDS, val=0, size=MEMORY_MIB << 20, filename=str(file))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    return run.console_log.read_bytes(), session.position.icount, found


def test_replays_are_equal_and_go_anywhere(recorded: Path) -> None:
    ended = ending.settle(recorded)
    assert ended.complete
    with replay(recorded, "failure") as first:
        assert first.status == "paused"
        assert first.vm.rundir.console_log.read_bytes().endswith(b"sysrq: Trigger a crash\r\n[")
        with pytest.raises(StateError, match="exec needs a guest that takes input, and again replays"):
            first.exec("ls")
        for refused in (first.snapshot, first.restore, first.vm.delete_snapshot):
            with pytest.raises(StateError, match="again replays a recording, and takes its snapshots itself"):
                refused("a")
        there = first.position
        functions = [frame.function for frame in first.gdb.backtrace()]
        assert "panic" in functions
        before = first.goto("Run /init")
        assert before.icount < there.icount
        assert "panic" not in [frame.function for frame in first.gdb.backtrace()]
        assert first.goto(there.icount).icount == there.icount
        assert [frame.function for frame in first.gdb.backtrace()] == functions
        first.goto("end")
        one = state_of(first)
    with replay(recorded, "end") as second:
        assert state_of(second) == one
    assert one[:2] == (files.console(recorded).read_bytes(), ended.icount - 1)


def test_a_breakpoint_in_init_memory_that_is_freed_later(recorded: Path) -> None:
    with replay(recorded, "end") as again:
        gdb = again.gdb
        mine = gdb.breakpoint("start_kernel")  # its memory has the kernel's poison, which looks like int3
        for _ in range(2):
            arrived = gdb.back()
            assert (arrived.breakpoint, arrived.frame.function) == (mine, "start_kernel")
            there = again.position.icount
            gdb.stepi()
            assert again.position.icount == there + 1
        gdb.cont(timeout=2 * SECONDS)
        assert again.position.icount == replaying.needed(again.vm).end


def test_a_trace_of_a_recording_has_the_same_hits_at_the_same_times(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trace", "--recording", str(recorded), "do_sys_openat2:dfd,filename", "--json"]
    found = []
    for _ in range(2):
        assert status_of(words) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    one, two = found
    assert one == two
    assert "/proc/sysrq-trigger" in [hit["args"]["filename"] for hit in one]
    times = [hit["time"] for hit in one]
    assert times == sorted(times)
    assert times[0] > 1


def test_the_command_line(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["recording", "show", str(recorded), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["status"] == "complete"
    assert "Kernel panic" in shown["failure"]["line"]
    assert status_of(["recording", "verify", str(recorded)]) == 0


def test_a_replay_knows_where_kaslr_has_put_the_kernel_before_it_runs(tmp_path: Path) -> None:
    recording = tmp_path / "moved.vmdrec"
    with session.start("builtin", name="moved", record=recording, kaslr=True, timeout=SECONDS) as guest:
        guest.exec("true", timeout=SECONDS)
    with session.replay(recording, to="start", name="first", timeout=2 * SECONDS) as first:
        about = replaying.needed(first.vm)
        assert about.slide is not None
        assert ending.settle(recording).slide == about.slide
        assert first.position.icount == 0
        verdict = first.gdb.identity
        assert verdict is not None
        assert (verdict.state, verdict.slide) == ("placed", about.slide)
        first.gdb.breakpoint("start_kernel")
        assert first.gdb.cont(timeout=SECONDS).frame.function == "start_kernel"
        first.goto("Run /init")
        assert first.gdb.backtrace()[-1].function in ("ret_from_fork", "ret_from_fork_asm")


def test_an_editor_goes_back(recorded: Path) -> None:
    """Its buttons lead back to a breakpoint's last hit, by lines and instructions, and to the begin."""
    with replay(recorded, "failure") as again, DapClient() as client:
        client.ask("initialize", adapterID="test", linesStartAt1=True)
        client.ask("attach", vm=again.vm.name)
        assert client.event("capabilities")["capabilities"]["supportsStepBack"] is True
        client.ask("configurationDone")
        assert client.event("stopped")["reason"] == "entry"
        functions = [each["name"] for each in _stack(client)]
        assert "panic" in functions

        client.ask("reverseContinue", threadId=1)
        assert "no breakpoint is set to go back to" in client.output("stderr")
        assert client.event("stopped")["reason"] == "step"
        assert [each["name"] for each in _stack(client)] == functions

        points = client.ask("setFunctionBreakpoints", breakpoints=[{"name": "sysrq_handle_crash"}])
        client.ask("reverseContinue", threadId=1)
        stop = client.event("stopped")
        assert (stop["reason"], stop["hitBreakpointIds"]) == ("breakpoint", [points["breakpoints"][0]["id"]])
        assert _stack(client)[0]["name"] == "sysrq_handle_crash"

        client.ask("stepBack", threadId=1)
        assert client.event("stopped")["reason"] == "step"
        caller = _stack(client)[0]
        assert caller["name"] == "__handle_sysrq"
        client.ask("stepBack", threadId=1)
        assert client.event("stopped")["reason"] == "step"
        before = _stack(client)[0]
        assert before["name"] == "__handle_sysrq"
        assert before["instructionPointerReference"] != caller["instructionPointerReference"]
        client.ask("stepBack", threadId=1, granularity="instruction")
        assert client.event("stopped")["reason"] == "step"
        at = int(before["instructionPointerReference"], 0)
        assert 0 < at - int(_stack(client)[0]["instructionPointerReference"], 0) < 16

        client.ask("continue", threadId=1)
        assert client.event("stopped")["hitBreakpointIds"] == [points["breakpoints"][0]["id"]]

        client.ask("setFunctionBreakpoints", breakpoints=[{"name": "kernel_restart"}])
        client.ask("reverseContinue", threadId=1)
        assert client.event("stopped")["reason"] == "entry"
        assert _stack(client)[0]["name"] != "__handle_sysrq"
        client.ask("disconnect")
        assert client.ended() == 0
        assert again.status == "paused"


def _stack(client: DapClient) -> list[Message]:
    frames: list[Message] = client.ask("stackTrace", threadId=1)["stackFrames"]
    return frames
