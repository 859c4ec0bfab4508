"""`$cpu`, `$task` and `$comm` in a trace's expressions, with the types that the plugin in QEMU gives them.

They are GDB's convenience variables only while a hit's expressions are evaluated. A variable that the user
has defined by one of these names is the user's own, and keeps its value.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator

import gdb
import vmd_hit_context
from vmd_hit_context import Here

NAMES = ("cpu", "task", "comm")

_TEXT = r'"(?:\\.|[^"\\])*"'
_NAME = re.compile(rf"{_TEXT}|'(?:\\.|[^'\\])*'|(?<![\w$])\$([A-Za-z_]\w*)(\s*=(?!=))?")
_COMM = r"\$comm\b"
_COMPARED = re.compile(rf"{_COMM}\s*([!=])=\s*({_TEXT})|({_TEXT})\s*([!=])=\s*{_COMM}")


class Variables:
    """Those of the variables that expressions name and that the user has not defined.

    Args:
        texts: The expressions.

    Raises:
        gdb.GdbError: they name the task, and the vmlinux does not say where it is.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        named = {name for text in texts for name, _ in _names(text)}
        self._names = [name for name in NAMES if name in named and not _defined(name)]
        of_task = [name for name in self._names if name != "cpu"]
        if of_task and (why := vmd_hit_context.no_task()):
            raise gdb.GdbError(f"${of_task[0]}: {why}")

    @contextlib.contextmanager
    def of(self, here: Here) -> Iterator[None]:
        """Set them in the block to a hit's values; to void if the task cannot be read."""
        before = {name: gdb.convenience_variable(name) for name in self._names}
        try:
            for name in self._names:
                gdb.set_convenience_variable(name, _value(name, here))
            yield
        finally:
            for name, value in before.items():
                gdb.set_convenience_variable(name, value)


def _value(name: str, here: Here) -> gdb.Value | None:
    if name == "cpu":
        kind = gdb.selected_inferior().architecture().integer_type(32, True)
        return gdb.Value(here.cpu).cast(kind)
    if here.task is None:
        return None
    return here.task.pointer if name == "task" else here.task.comm


def unknown(text: str, texts: Iterable[str]) -> str:
    """Return the error for the first name in an expression that GDB does not know; else "".

    To GDB it would be void, which is no error.

    Args:
        text: The expression.
        texts: All expressions of the trace: one may set a variable that another uses.
    """
    assigned = {name for each in texts for name, is_assigned in _names(each) if is_assigned}
    for name, _ in _names(text):
        if name not in assigned and name not in NAMES and not _defined(name):
            return (
                f"there is no ${name}: it is no register, not set in GDB, and not $cpu, $task or $comm\n"
                f"set it before the trace: set ${name} = 1"
            )
    return ""


def comparable(text: str) -> str:
    """Return an expression with `$comm == "text"` as `$_streq`: to compare arrays, GDB would call malloc."""

    def call(match: re.Match[str]) -> str:
        operator, wanted = match[1] or match[4], match[2] or match[3]
        return f"{'!' if operator == '!' else ''}$_streq($comm, {wanted})"

    return _COMPARED.sub(call, text)


def _names(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the names after a $ in an expression, and whether it assigns to them."""
    for match in _NAME.finditer(text):
        if match[1]:
            yield match[1], bool(match[2])


def _defined(name: str) -> bool:
    """Whether GDB has a register, a convenience variable or a convenience function of that name."""
    try:
        return gdb.parse_and_eval(f"${name}").type.code != gdb.TYPE_CODE_VOID
    except gdb.error:
        return True  # a register that the selected frame does not have
