"""An agent's session with `vmdebug mcp`, through the SDK's client, on a real guest."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from tests.fixtures.accel import ACCEL
from vmdebug import process, vm
from vmdebug.deadline import Deadline
from vmdebug.process import ProcessRef

SECONDS = 120.0
MISSING = "/no/such/file"
PLACES = ["do_sys_openat2", "do_filp_open", "path_openat", "walk_component", "step_into"]

Call = Callable[..., Awaitable[Any]]


class Failed(Exception):  # noqa: N818 - it carries the tool's error
    """A tool's error: its structured content."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.content = content


@asynccontextmanager
async def agent(runtime: Path, *words: str) -> AsyncIterator[tuple[Client, Call]]:
    """A client of a server, and a function that calls its tools."""
    env = {"XDG_RUNTIME_DIR": str(runtime), "PYTHONPATH": ":".join(sys.path)}
    server = StdioServerParameters(command=sys.executable, args=["-m", "vmdebug.cli", "mcp", *words], env=env)
    async with Client(server) as client:

        async def call(tool: str, **arguments: Any) -> Any:
            found = await client.call_tool(tool, arguments)
            if found.is_error:
                raise Failed(found.structured_content or {"message": str(found.content)})
            return found.structured_content

        yield client, call


def test_a_session_finds_which_function_returned_enoent(runtime: Path) -> None:
    anyio.run(_find_the_function, runtime)
    assert vm.names() == []


async def _find_the_function(runtime: Path) -> None:
    async with agent(runtime) as (client, call):
        started = await call("start", guest="builtin", accel=ACCEL)
        assert (started["status"], started["started_here"]) == ("running", True)
        await call("exec", command="true", timeout=SECONDS)

        opened = await call(
            "trace",
            places=["do_sys_openat2:filename"],
            command=f"cat {MISSING}",
            task="cat",
            returns=True,
            timeout=SECONDS,
        )
        hit = next(each for each in opened["hits"] if each["args"]["filename"] == MISSING)
        assert (hit["return_value"], hit["error"]) == (-2, "ENOENT")
        assert opened["command"]["status"] == 1

        traced = await call(
            "trace", places=PLACES, command=f"cat {MISSING}", task="cat", errors_only=True, timeout=SECONDS
        )
        failed = [each["place"] for each in traced["hits"] if each["error"] == "ENOENT"]
        assert set(PLACES) >= set(failed) >= {"do_sys_openat2", "do_filp_open", "path_openat"}
        innermost = max(traced["hits"], key=lambda each: each["time"])["place"]

        stopped = await _stopped_at(call, innermost)
        assert "path_openat" in [each["function"] for each in stopped["frames"]]
        finished = (await call("finish", timeout=SECONDS))["stop"]
        assert (finished["reason"], finished["error"]) == ("function-finished", "ENOENT")

        await _guard(call)
        await _cancel(client, call, stopped["job"])
        assert (await call("stop"))["done"] == "ended builtin"


async def _stopped_at(call: Call, innermost: str) -> dict[str, Any]:
    """Stop at the innermost function on the way of the open, and return its frames and the command."""
    opening = f'$_streq(pathname->name, "{MISSING}")'
    first = (await call("breakpoint", action="set", where="do_filp_open", condition=opening))["changed"]
    command = await call("exec", command=f"cat {MISSING}", timeout=SECONDS)
    assert (command["finished"], command["stop"]["breakpoint"]) == (False, first[0])
    assert command["stop"]["task"]["comm"] == "cat"
    assert (await call("evaluate", expression="pathname->name"))["text"] == MISSING
    arguments = {each["name"] for each in (await call("variables"))["arguments"]}
    assert {"dfd", "pathname", "op"} == arguments
    await call("breakpoint", action="set", where=innermost, temporary=True)
    stop = (await call("continue", timeout=SECONDS))["stop"]
    assert stop["frame"]["function"] == innermost
    return {"job": command["job"], **(await call("backtrace"))}


async def _guard(call: Call) -> None:
    """No text of the agent runs anything on the host."""
    for tool, arguments in (
        ("evaluate", {"expression": '$_shell("true")'}),
        ("evaluate", {"expression": "1\nshell true"}),
        ("evaluate", {"expression": "| shell true"}),
        ("breakpoint", {"action": "set", "where": '*$_shell("true")'}),
        ("breakpoint", {"action": "set", "where": "vfs_read", "condition": 'nothing($_shell("true"))'}),
        ("breakpoint", {"action": "watch", "where": '$_shell("true")'}),
        ("trace", {"places": ['*$_shell("true")'], "by": "gdb", "timeout": 1}),
        ("start", {"guest": "/bin/true"}),
        ("start", {"append": "$(true)"}),
        ("exec", {"command": "true"}),  # the guest is stopped
    ):
        with pytest.raises(Failed) as error:
            await call(tool, **arguments)
        assert error.value.content["kind"] in ("GdbError", "UsageError", "StateError"), (tool, arguments)
    made = await call("breakpoint", action="set", where="vfs_read", condition='$_shell("true")')
    try:
        stop = (await call("continue", timeout=5.0))["stop"]
        # GDB stops where it cannot evaluate a condition.
        assert stop["breakpoint"] in made["changed"]
    finally:
        await call("breakpoint", action="delete")


async def _cancel(client: Client, call: Call, job: int) -> None:
    """A cancelled `continue` stops the guest, and the session can be used."""
    waits = anyio.Event()

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        assert message == "waiting for the guest to stop"
        waits.set()

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as group:
            arguments = {"timeout": SECONDS}
            group.start_soon(lambda: client.call_tool("continue", arguments, progress_callback=reported))
            await waits.wait()
            group.cancel_scope.cancel()
    assert (await call("attach"))["stop"]["frame"]["pc"].startswith("0xffffffff")
    await call("continue", wait=False)
    done = await call("exec", job=job, timeout=SECONDS)
    assert (done["finished"], done["status"]) == (True, 1)
    assert (await call("exec", command="echo on", timeout=SECONDS))["stdout"] == "on\n"


def test_a_call_that_waits_for_a_guest_that_hangs_can_be_cancelled(runtime: Path) -> None:
    anyio.run(_hang, runtime)


async def _hang(runtime: Path) -> None:
    """The guest's first program only reads its console, so no shell answers."""
    async with agent(runtime) as (client, call):
        await call("start", guest="builtin", accel=ACCEL, append="rdinit=/bin/cat")
        waits = anyio.Event()

        async def reported(progress: float, total: float | None, message: str | None) -> None:
            assert message == "waiting for the guest's shell"
            waits.set()

        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as group:
                arguments = {"command": "true", "timeout": 10 * SECONDS}
                group.start_soon(lambda: client.call_tool("exec", arguments, progress_callback=reported))
                await waits.wait()
                group.cancel_scope.cancel()
            assert (await call("stop"))["done"] == "ended builtin"


def test_the_vm_ends_with_a_killed_server_and_others_are_not_touched(runtime: Path) -> None:
    anyio.run(_kill, runtime)


async def _killed(runtime: Path) -> None:
    async with agent(runtime) as (_, call):
        await call("start", guest="builtin", halt=True, name="theirs")
        with pytest.raises(Failed) as error:
            await call("evaluate", expression="1", vm="mine")
        assert error.value.content["message"] == "mine was not started by this server"
        theirs = vm.find("theirs").state
        assert theirs.owner is not None
        theirs.owner.signal(signal.SIGKILL)
        assert theirs.qemu.wait(SECONDS)


async def _kill(runtime: Path) -> None:
    argv = [sys.executable, "-m", "vmdebug.cli", "start", "builtin", "-S", "--accel", ACCEL, "--name", "mine"]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    process.run(argv, env=env, deadline=Deadline.after(SECONDS))
    mine = vm.find("mine")
    try:
        await _killed(runtime)
        assert mine.state.qemu.alive()
        async with agent(runtime, "--allow-existing") as (_, call):
            assert [each["name"] for each in (await call("status"))["machines"]] == ["mine"]
            assert (await call("evaluate", expression="$rip", vm="mine"))["value"]
            with pytest.raises(Failed) as error:
                await call("stop", vm="mine")
            assert "does not end it" in error.value.content["message"]
        assert ProcessRef.of(mine.state.pid) is not None
    finally:
        mine.stop()
