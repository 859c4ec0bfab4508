"""Requests about a connected guest: threads, variables, breakpoints, steps. Most are GDB's, with changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmdebug.errors import GdbError, UsageError
from vmdebug.faces.dap import tasks
from vmdebug.faces.dap.client import Client
from vmdebug.faces.dap.debugger import Debugger
from vmdebug.faces.dap.variables import Variables
from vmdebug.faces.dap.wire import Message

Handler = Callable[[Message, dict[str, Any]], None]

_PASSED = frozenset(
    {
        "breakpointLocations", "completions", "disassemble", "loadedSources", "locations", "modules",
        "readMemory", "setExpression", "writeMemory",
    }
)  # fmt: skip
"""Requests whose arguments GDB gets as they are."""

_STEPS = {"next": "next", "stepIn": "step", "stepOut": "vmd-finish"}
_BACK = {"stepBack": "reverse-next", "reverseContinue": "reverse-continue"}
_INSTRUCTIONS = {"next": "nexti", "stepIn": "stepi", "stepBack": "reverse-stepi"}

_NO_COMMAND = "Undefined command"
"""The beginning of GDB's error for a line of its prompt that is no command."""


class Inspecting:
    """Handles these requests.

    Args:
        client: The client.
        connected: Returns GDB; raises if there is none.
    """

    def __init__(self, client: Client, connected: Callable[[], Debugger]) -> None:
        self._client = client
        self._connected = connected
        variables = Variables(client, connected)
        self._handlers: dict[str, Handler] = {
            "threads": self._threads,
            "stackTrace": self._stack,
            "scopes": variables.scopes,
            "variables": variables.children,
            "setVariable": self._set_variable,
            "evaluate": self._evaluate,
            "source": self._source,
            "continue": self._continue,
            "setBreakpoints": self._source_breakpoints,
            "setFunctionBreakpoints": self._breakpoints,
            "setInstructionBreakpoints": self._breakpoints,
            "setExceptionBreakpoints": self._trouble,
            **dict.fromkeys((*_STEPS, *_BACK), self._step),
            **dict.fromkeys(_PASSED, self._pass),
        }

    def handler(self, command: str) -> Handler | None:
        """Return the handler of a request; None if it is none of these."""
        return self._handlers.get(command)

    def _pass(self, request: Message, _given: dict[str, Any]) -> None:
        self._connected().forward(request)

    def _threads(self, request: Message, _given: dict[str, Any]) -> None:
        debugger = self._connected()
        if debugger.runs.running:
            named = [_thread(number, cpu, -1, "") for number, cpu, *_ in debugger.cpus]
        else:
            debugger.cpus = debugger.query("cpus()")
            named = [_thread(*each) for each in debugger.cpus]
        self._client.succeed(request, {"threads": named})

    def _stack(self, request: Message, _given: dict[str, Any]) -> None:
        def ended(body: Message) -> Message:
            frames = body.get("stackFrames", [])
            # The kernel's entry has no caller: a frame at 0 is the end.
            while len(frames) > 1 and int(frames[-1].get("instructionPointerReference", "1"), 0) == 0:
                frames.pop()
            return {**body, "stackFrames": frames}

        self._connected().forward(request, ended)

    def _set_variable(self, request: Message, given: dict[str, Any]) -> None:
        if int(given["variablesReference"]) >= tasks.FIRST:
            raise UsageError("a task is no variable", hint="set a field of its task_struct")
        self._connected().forward(request)

    def _evaluate(self, request: Message, given: dict[str, Any]) -> None:
        debugger = self._connected()
        context = given.get("context", "watch")
        if context != "repl":
            known = context if context in ("watch", "hover") else "variables"
            debugger.forward({**request, "arguments": {**given, "context": known}})
            return
        try:
            self._client.succeed(request, debugger.gdb.ask("evaluate", **given))
        except GdbError as error:
            if not error.words.startswith(_NO_COMMAND):
                raise
            # No command of GDB: perhaps an expression, as people type it at an editor's prompt.
            debugger.forward({**request, "arguments": {**given, "context": "watch"}})

    def _source(self, _request: Message, given: dict[str, Any]) -> None:
        path = given.get("source", {}).get("path", "")
        raise UsageError(
            f"this machine does not have the source file {path}".rstrip(),
            hint='give the kernel\'s tree as "source", or the recorded prefix in "sourceMap"',
        )

    def _continue(self, request: Message, _given: dict[str, Any]) -> None:
        self._connected().resume(request)

    def _step(self, request: Message, given: dict[str, Any]) -> None:
        debugger, name = self._connected(), request["command"]
        if debugger.runs.running:
            raise UsageError("the guest runs", hint="pause it first")
        back = _BACK.get(name)
        if back is not None and not debugger.goes_back:
            raise UsageError(f"{name}: the guest is no replay", hint="record it: vmdebug start --record")
        command = back or _STEPS[name]
        if given.get("granularity") == "instruction":
            command = _INSTRUCTIONS.get(name, command)
        thread = int(given["threadId"])
        self._client.succeed(request)
        debugger.step(command, thread)

    def _source_breakpoints(self, request: Message, given: dict[str, Any]) -> None:
        debugger = self._connected()
        source = dict(given["source"])
        path, note = debugger.sources.to_gdb(str(source.get("path", "")))
        source = {"path": path} if path else source
        wanted = {**given, "source": source}
        wanted.pop("lines", None)
        with debugger.held():
            body = debugger.sources.translated(debugger.gdb.ask("setBreakpoints", **wanted))
        for each in body.get("breakpoints", []):
            if note:
                each.setdefault("message", note)
            elif not each.get("verified") and each.get("reason") == "pending":
                each["message"] = "no code of the kernel, nor of a module that is loaded now, is at this line"
        self._client.succeed(request, body)

    def _breakpoints(self, request: Message, given: dict[str, Any]) -> None:
        debugger = self._connected()
        with debugger.held():
            body = debugger.sources.translated(debugger.gdb.ask(request["command"], **given))
        self._client.succeed(request, body)

    def _trouble(self, request: Message, given: dict[str, Any]) -> None:
        debugger = self._connected()
        kinds = [str(kind) for kind in given.get("filters", ())]
        kinds += [str(each["filterId"]) for each in given.get("filterOptions", ())]
        with debugger.held():
            debugger.catch(kinds)
        self._client.succeed(request, {"breakpoints": [{"verified": True} for _ in kinds]})


def _thread(number: int, cpu: int, pid: int, name: str) -> Message:
    task = f": {name} ({pid})" if pid >= 0 else ""
    return {"id": number, "name": f"CPU {cpu}{task}"}
