"""Scopes and the children of variables: GDB's, and those of the scope "Tasks".

GDB refuses all variables of a scope if it cannot read one of them, as with static per-CPU variables, which
are at addresses near 0. So they are asked for in parts then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmdebug.errors import GdbError, UsageError
from vmdebug.faces.dap import tasks
from vmdebug.faces.dap.client import NOT_STOPPED, Client
from vmdebug.faces.dap.debugger import Debugger
from vmdebug.faces.dap.wire import Message


class Variables:
    """Handles the requests `scopes` and `variables`.

    Args:
        client: The client.
        connected: Returns GDB; raises if there is none.
    """

    def __init__(self, client: Client, connected: Callable[[], Debugger]) -> None:
        self._client = client
        self._connected = connected
        self._counts: dict[int, int] = {}

    def scopes(self, request: Message, _given: dict[str, Any]) -> None:
        """Answer `scopes`: those of GDB, and the tasks."""
        scope = self._connected().tasks.scope()

        def with_tasks(body: Message) -> Message:
            self._counts = {
                int(each["variablesReference"]): int(each.get("namedVariables", 0))
                for each in body.get("scopes", [])
            }
            return {**body, "scopes": [*body.get("scopes", []), scope]}

        self._connected().forward(request, with_tasks)

    def children(self, request: Message, given: dict[str, Any]) -> None:
        """Answer `variables`.

        Raises:
            UsageError: the variable is of an earlier stop.
            GdbError: GDB cannot read it.
        """
        debugger = self._connected()
        reference = int(given["variablesReference"])
        if reference >= tasks.FIRST:
            self._client.succeed(request, {"variables": _of_tasks(debugger, reference)})
            return
        try:
            body = debugger.gdb.ask("variables", **given)
        except GdbError as error:
            count = self._counts.get(reference, 0)
            if error.words == NOT_STOPPED or count < 2:  # noqa: PLR2004 - one alone cannot be divided
                raise
            rest = {key: value for key, value in given.items() if key not in ("start", "count")}
            body = {"variables": _in_parts(debugger, rest, 0, count)}
        self._client.succeed(request, debugger.sources.translated(body))


def _in_parts(debugger: Debugger, given: dict[str, Any], start: int, count: int) -> list[Message]:
    """Return variables; those that GDB cannot read have its error as their value."""
    try:
        found: list[Message] = debugger.gdb.ask("variables", **given, start=start, count=count)["variables"]
    except GdbError as error:
        if count == 1:
            return [{"name": "(unreadable)", "value": f"<{error.words}>", "variablesReference": 0}]
        half = count // 2
        first = _in_parts(debugger, given, start, half)
        return first + _in_parts(debugger, given, start + half, count - half)
    return found


def _of_tasks(debugger: Debugger, reference: int) -> list[Message]:
    try:
        found = debugger.tasks.variables(reference)
    except KeyError:
        raise UsageError("the guest has run since: these tasks are of an earlier stop") from None
    if not isinstance(found, int):
        return found
    struct = f"*(struct task_struct *) {found:#x}"
    value = debugger.gdb.ask("evaluate", expression=struct, context="watch")
    fields: list[Message] = debugger.gdb.ask("variables", variablesReference=value["variablesReference"])[
        "variables"
    ]
    return fields
