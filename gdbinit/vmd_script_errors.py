"""Limits errors in the kernel's own GDB scripts to the commands that they affect.

`constants.py` asks GDB for symbols while it is imported, so one symbol that this kernel lacks would disable
every command; here it disables only those that use it. A command that fails in its script (lx-timerlist on
6.1, whose red-black tree no longer exists) prints its name and the reason, and no Python traceback.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gdb

if TYPE_CHECKING:
    import ast

_COMMAND = re.compile(
    r"^class (\w+)\(gdb\.Command\):.*?__init__\(\s*[\"']([\w-]+)[\"']", re.MULTILINE | re.DOTALL
)

_SUFFIXED = re.compile(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b")


def constants(file: Path) -> dict[str, str]:
    """Import `linux.constants`; return the reason for each name that is missing.

    If the import fails, run it statement by statement. Using a missing name later raises gdb.error with the
    reason.

    Args:
        file: The generated `constants.py`; the parent of its directory is on `sys.path`.

    Raises:
        OSError: there is no such file.
    """
    with suppress(gdb.error, ImportError, NameError, ValueError, SyntaxError):
        importlib.import_module("linux.constants")
        return {}
    return _line_by_line(file)


def _line_by_line(file: Path) -> dict[str, str]:
    import ast  # noqa: PLC0415 - slow to import, and most kernels have all their constants

    import linux  # type: ignore[import-not-found] # noqa: PLC0415 - available since the import above

    missing: dict[str, str] = {}
    module = ModuleType("linux.constants")
    module.__file__ = str(file)
    for statement in _statements(file.read_text(), missing):
        try:
            exec(compile(ast.Module([statement], []), str(file), "exec"), vars(module))  # noqa: S102 - this is what an import does
        except (gdb.error, NameError, ValueError) as error:
            names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
            reason = " ".join(str(error).split())
            missing |= {each: reason for each in names if each.startswith("LX_") and each not in vars(module)}

    def absent(name: str) -> Any:
        if name in missing:
            raise gdb.error(f"{name}: {missing[name]}")
        raise AttributeError(name)

    vars(module)["__getattr__"] = absent  # PEP 562
    sys.modules[module.__name__] = linux.constants = module
    return missing


def commands(text: str) -> dict[str, str]:
    """Return the commands that a script defines, by class name."""
    return dict(_COMMAND.findall(text))


def users(name: str, text: str) -> list[str]:
    """Return the commands of a script that use a constant; if a function of it does, all its commands may."""
    import ast  # noqa: PLC0415 - as above

    by_class = commands(text)
    using: list[str] = []
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        if f"constants.{name}" in (ast.get_source_segment(text, node) or ""):
            using += [by_class[node.name]] if node.name in by_class else by_class.values()
    return list(dict.fromkeys(using))


def guard(part: ModuleType, text: str) -> None:
    """Make the commands of an imported script print one line instead of a traceback when they fail."""
    for name, command in commands(text).items():
        cls = getattr(part, name, None)
        if cls is not None and not hasattr(cls.invoke, "guarded"):
            cls.invoke = _guarded(cls.invoke, command)


UNLOADED = "The kernel's GDB scripts are loaded at its first use."
"""The end of a command's documentation before its script is loaded; see `vmd_lazy_scripts`."""


def exists(command: str) -> bool:
    """Whether a script has defined a command of that name."""
    try:
        return UNLOADED not in gdb.execute(f"help {command}", to_string=True)
    except gdb.error:
        return False


def _statements(text: str, missing: dict[str, str]) -> list[ast.stmt]:
    """Return the statements of `constants.py`, without lines that are not Python.

    Remove C's number suffixes: Linux 5.10.262 has `LX_SB_RDONLY = ((((1UL))) << (0))`.
    """
    import ast  # noqa: PLC0415 - as above

    lines = text.splitlines()
    while True:
        try:
            return ast.parse("\n".join(lines)).body
        except SyntaxError as error:
            at = (error.lineno or 1) - 1
            without = _SUFFIXED.sub(r"\1", lines[at])
            if without != lines[at]:
                lines[at] = without
                continue
            found = re.match(r"(\s*)(LX_\w+)", lines[at])
            if found is None:
                raise
            missing[found[2]] = f"this line of constants.py is not Python: {lines[at].strip()}"
            lines[at] = f"{found[1]}pass"


def _guarded(invoke: Callable[[Any, str, bool], None], command: str) -> Callable[[Any, str, bool], None]:
    def run(self: Any, argument: str, from_tty: bool) -> None:
        try:
            invoke(self, argument, from_tty)
        except (gdb.GdbError, gdb.MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - a kernel script can fail in any way
            # With an argument, the argument may be wrong.
            what = "failed" if argument else "is broken on this kernel"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise gdb.GdbError(f"{command} {what}: {reason} ({_where(error)})") from None

    run.guarded = True  # type: ignore[attr-defined]
    return run


def _where(error: Exception) -> str:
    """Return the file and line of the kernel script that failed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    file = Path(frames[-1].filename)
    return f"{file.parent.name}/{file.name}:{frames[-1].lineno}"
