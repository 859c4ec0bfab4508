"""The page of the Python API: every public name of `vmdebug`, with its docstring."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import vmdebug

if TYPE_CHECKING:
    from sphinx.application import Sphinx

GROUPS = {
    "Start a guest": ("start", "attach", "start_node", "StartOptions", "GuestOptions"),
    "A session": ("DebugSession", "ExecResult", "Job", "Console", "Vm", "Snapshot"),
    "GDB": ("Gdb", "Breakpoint", "Stop", "Thread", "Frame", "Value"),
    "Traces": ("Trace", "Hit", "Activity", "Task", "Call", "Probe", "TraceOptions"),
    "The kernel's own tests": ("KernelTestResults", "KernelTestPoint"),
}
"""The order of the page. Names that are in no group come after them, and errors last."""

HEAD = """
Python API
==========

.. Written by docs/_ext/api_reference.py.

All names are exported by the package ``vmdebug``. Sessions come from :func:`vmdebug.start` and
:func:`vmdebug.attach`; most other objects come from a session. :doc:`../howto/scripting` shows how they work
together.
"""

ERRORS_HEAD = """
All errors derive from :class:`vmdebug.VmdebugError`. The number is the exit status of a command that ends
with the error.
"""


def sections(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the headings of the page with the names below them."""
    left = [name for name in names if not any(name in group for group in GROUPS.values())]
    errors = [name for name in left if name.endswith("Error")]
    made = {heading: [name for name in group if name in names] for heading, group in GROUPS.items()}
    made["Further classes and functions"] = [name for name in left if name not in errors]
    made["Errors"] = sorted(errors, key=lambda name: name != "VmdebugError")
    return {heading: group for heading, group in made.items() if group}


def page() -> str:
    """Return the page in reStructuredText, the language of docstrings in Sphinx."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield HEAD
    for heading, names in sections(vmdebug.__all__).items():
        yield f"\n{heading}\n{'-' * len(heading)}\n"
        if heading == "Errors":
            yield ERRORS_HEAD
        for name in names:
            yield from _entry(name)


def _entry(name: str) -> Iterator[str]:
    thing = getattr(vmdebug, name)
    if not inspect.isclass(thing):
        yield f".. autofunction:: vmdebug.{name}\n"
    elif issubclass(thing, vmdebug.VmdebugError):
        yield f".. autoexception:: vmdebug.{name}\n   :members:\n   :show-inheritance:\n"
        yield f"   Exit status {thing.exit_status}.\n"
    else:
        yield f".. autoclass:: vmdebug.{name}\n   :members:\n   :inherited-members: dict, Struct, tuple\n"


_CODE = re.compile(r"(`[^`]*`)")


def plain(lines: Sequence[str]) -> list[str]:
    """Return a docstring with the asterisks of C and of patterns escaped: they are no markup in ours."""
    made, literal = [], False
    for line in lines:
        literal = literal and (not line or line.startswith(" "))
        made.append(line if literal else _plain(line))
        literal = literal or line.endswith("::")
    return made


def _plain(line: str) -> str:
    return "".join(part if part.startswith("`") else part.replace("*", r"\*") for part in _CODE.split(line))


def _escape(_app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    lines[:] = plain(lines)


_CONSTANT = re.compile(r"(?<== )[A-Z][A-Z_]+\b")


def valued(signature: str, thing: object) -> str:
    """Return a signature with the values of constants: `timeout: float = 120.0`, not `LAUNCH_SECONDS`."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")

    def value(found: re.Match[str]) -> str:
        constant = getattr(module, found[0], None)
        return repr(constant) if isinstance(constant, int | float | str) else found[0]

    return _CONSTANT.sub(value, signature)


def _signature(
    _app: Sphinx,
    _what: str,
    _name: str,
    thing: object,
    _options: object,
    shown: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    return (valued(shown, thing) if shown else shown), returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the page before Sphinx looks for its sources, and read docstrings as we write them."""

    def write(_app: Sphinx, _config: object) -> None:
        path = Path(app.srcdir) / "reference" / "api.rst"
        text = page()
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)

    app.connect("config-inited", write)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
