"""The server: its tools, its instructions, and its life on standard input and output."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib import metadata
from types import FrameType
from typing import Any, NamedTuple

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp.types import ToolAnnotations
from pydantic import ConfigDict

from vmdebug.faces.mcp import calls, tools_gdb, tools_guest, tools_vm
from vmdebug.faces.mcp.guests import Permitted
from vmdebug.faces.mcp.machines import Machines

INSTRUCTIONS = """\
Debugs Linux kernels in QEMU. `status` lists the guests that `start` takes, and the VMs.
A usual session: `start`; `exec` runs a command in the guest (the first waits for the boot); `trace` records
calls of kernel functions while a command runs; `breakpoint`, then `exec` of what reaches it, which returns
the stop; `backtrace`, `variables`, `evaluate`, `step`, `finish`; `continue`; `exec` with the job for the
rest of the command.
While the guest is stopped, commands cannot run in it: `continue` with wait=false sets it running.
Functions that the compiler has inlined everywhere cannot be traced or broken at; their callers can.
`snapshot` before an experiment, `restore` afterwards. The VMs end with this server."""


class _Tool(NamedTuple):
    """A tool.

    Args:
        name: Its name.
        work: Its function; see `calls.tool`.
        reads: Whether it changes nothing, except that it stops the guest for a moment.
        destroys: Whether it may lose something of the guest.
    """

    name: str
    work: Callable[..., Any]
    reads: bool = False
    destroys: bool = False


def tools(permitted: Permitted) -> tuple[_Tool, ...]:
    """Return all tools, in the order of their use.

    Args:
        permitted: The guests that may be started.
    """
    vms = tools_vm.Vms(permitted)
    return (
        _Tool("start", vms.start),
        _Tool("status", vms.status, reads=True),
        _Tool("attach", tools_gdb.attach),
        _Tool("detach", tools_gdb.detach),
        _Tool("breakpoint", tools_gdb.breakpoint_),
        _Tool("continue", tools_gdb.continue_),
        _Tool("interrupt", tools_gdb.interrupt),
        _Tool("step", tools_gdb.step),
        _Tool("next", tools_gdb.next_),
        _Tool("finish", tools_gdb.finish),
        _Tool("backtrace", tools_gdb.backtrace, reads=True),
        _Tool("variables", tools_gdb.variables, reads=True),
        _Tool("evaluate", tools_gdb.evaluate),
        _Tool("trace", tools_guest.trace),
        _Tool("exec", tools_guest.exec_, destroys=True),
        _Tool("dmesg", tools_guest.dmesg, reads=True),
        _Tool("log", vms.log, reads=True),
        _Tool("decode", tools_guest.decode, reads=True),
        _Tool("snapshot", vms.snapshot),
        _Tool("restore", vms.restore, destroys=True),
        _Tool("stop", vms.stop, destroys=True),
    )


def build(machines: Machines, permitted: Permitted) -> MCPServer[Any]:
    """Return the server, which does not run yet.

    Args:
        machines: Its VMs.
        permitted: The guests that may be started.
    """
    registered = []
    for each in tools(permitted):
        hints = ToolAnnotations(
            read_only_hint=each.reads, destructive_hint=each.destroys, open_world_hint=False
        )
        work = calls.tool(machines, each.name, each.work)
        registered.append(_exact(Tool.from_function(work, annotations=hints, structured_output=True)))
    server: MCPServer[Any] = MCPServer(
        "vmdebug",
        title="vmdebug: Linux kernels in QEMU under GDB",
        instructions=INSTRUCTIONS,
        version=metadata.version("vmdebug"),
        log_level="WARNING",
        tools=registered,
    )
    return server


def _exact(tool: Tool) -> Tool:
    """Let a tool refuse arguments that it does not have: the SDK drops them, as if they were not given."""

    class Exact(tool.fn_metadata.arg_model):  # type: ignore[misc, name-defined]
        model_config = ConfigDict(extra="forbid")

    tool.fn_metadata.arg_model = Exact
    tool.parameters = Exact.model_json_schema(by_alias=True)
    return tool


def run(permitted: Permitted, *, allow_existing: bool) -> None:
    """Serve a client on standard input and output until it closes them, then end the VMs.

    The VMs end also if this process is killed.

    Args:
        permitted: The guests that may be started.
        allow_existing: Whether VMs that the server has not started may be used.
    """
    with Machines(allow_existing=allow_existing) as machines:
        _end_by_signals(machines)
        anyio.run(build(machines, permitted).run_stdio_async)


def _end_by_signals(machines: Machines) -> None:
    """Let a signal end the VMs and this process: a thread that reads standard input cannot be interrupted."""

    def end(number: int, _frame: FrameType | None) -> None:
        machines.close()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
