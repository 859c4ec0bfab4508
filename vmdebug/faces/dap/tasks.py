"""The scope "Tasks": every task of the kernel as a variable, with its task_struct and its backtrace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmdebug.faces.dap.wire import Message

FIRST = 1 << 30
"""The first number of ours for a variable with children; GDB counts its own from 1, anew after each run."""

TASKS = FIRST

Query = Callable[[str], Any]
"""Calls a function of `gdbinit/vmd_dap.py`, and returns its answer."""


class TaskScope:
    """The variables of the scope, until the guest runs.

    Args:
        query: Asks GDB.
    """

    def __init__(self, query: Query) -> None:
        self._query = query
        self._lock = threading.Lock()
        self._addresses: dict[int, int] = {}
        self._kinds: dict[int, str] = {}

    def scope(self) -> Message:
        """Return the scope."""
        return {"name": "Tasks", "variablesReference": TASKS, "expensive": True, "presentationHint": "tasks"}

    def forget(self) -> None:
        """Forget the variables, because the guest has run."""
        with self._lock:
            self._addresses.clear()
            self._kinds.clear()

    def variables(self, reference: int) -> list[Message] | int:
        """Return the children of a variable, or the address of the task_struct that GDB has to show.

        Raises:
            KeyError: the variable is of an earlier stop.
        """
        if reference == TASKS:
            return [self._task(*each) for each in self._query("tasks()")]
        address, kind = self._addresses[reference], self._kinds[reference]
        if kind == "task":
            return [
                {"name": "backtrace", "value": "", "variablesReference": self._new(address, "stack")},
                {
                    "name": "task_struct",
                    "value": f"{address:#x}",
                    "evaluateName": _expression(address),
                    "variablesReference": self._new(address, "struct"),
                },
            ]
        if kind == "struct":
            return address
        frames = self._query(f"task_frames({address:#x})")
        return [_frame(number, *each) for number, each in enumerate(frames)]

    def _task(self, pid: int, name: str, state: str, address: int) -> Message:
        return {
            "name": f"{pid} {name}",
            "value": state,
            "type": "struct task_struct *",
            "evaluateName": _expression(address),
            "memoryReference": f"{address:#x}",
            "variablesReference": self._new(address, "task"),
        }

    def _new(self, address: int, kind: str) -> int:
        with self._lock:
            number = FIRST + 1 + len(self._addresses)
            self._addresses[number] = address
            self._kinds[number] = kind
        return number


def _expression(address: int) -> str:
    return f"*(struct task_struct *) {address:#x}"


def _frame(number: int, function: str, file: str, line: int) -> Message:
    where = f" at {Path(file).name}:{line}" if file else ""
    return {"name": f"#{number}", "value": f"{function}{where}", "variablesReference": 0}
