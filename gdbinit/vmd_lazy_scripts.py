"""Defines the commands and functions of the kernel's GDB scripts, and loads the scripts at their first use.

The scripts look up symbols by name when they are loaded, and for the first one GDB sorts all names in its
index. This makes an attach half as long again, and most sessions never use a script.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import spec_from_loader
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import gdb
import vmd_script_errors

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

_CLASS = re.compile(
    r"^class (\w+)\s*\(gdb\.(Command|Function)\):\n(.*?)(?=^class |\Z)", re.MULTILINE | re.DOTALL
)
_REGISTERED = re.compile(r"__init__\(\s*[\"']([\w-]+)[\"']((?:,\s*gdb\.\w+)*)\s*\)")
_DOC = re.compile(r'\s*"""(.*?)"""', re.DOTALL)

_OTHERWISE = ("gdb.Parameter", "gdb.printing", "def complete(")
"""A script with one of these words does more than define commands and functions."""

_INNER = (" ", "\t", "#", "class ", "def ", "import ", "from ")
"""Lines that begin like this call nothing in GDB when a script is loaded."""

_PACKAGE = "linux."


class Registered(NamedTuple):
    """A command or function that a script defines.

    Args:
        cls: The name of its class.
        name: Its name in GDB.
        doc: Its documentation.
        options: GDB's class of the command and its completion; None for a function.
    """

    cls: str
    name: str
    doc: str
    options: tuple[str, ...] | None


def registered(text: str) -> list[Registered] | None:
    """Return the commands and functions that a script defines; None if it does more than define them."""
    at_import = any("gdb." in line and not line.startswith(_INNER) for line in text.splitlines())
    if at_import or any(word in text for word in _OTHERWISE):
        return None
    found = []
    for cls, kind, body in _CLASS.findall(text):
        how, doc = _REGISTERED.search(body), _DOC.match(body)
        if how is None:
            return None
        options = tuple(re.findall(r"gdb\.(\w+)", how[2])) if kind == "Command" else None
        found.append(Registered(cls, how[1], doc[1] if doc else "", options))
    complete = len(found) == text.count("gdb.Command") + text.count("gdb.Function")
    return found if complete else None


class Scripts:
    """The scripts of a kernel, which are loaded at their first use.

    Args:
        load: Loads them.
    """

    def __init__(self, load: Callable[[], None]) -> None:
        self._load = load
        self._loaded = False

    def define(self, texts: dict[str, str]) -> bool:
        """Define the commands and functions of the scripts; define nothing if a script does more than that.

        Args:
            texts: The scripts, by module name.

        Returns:
            Whether they are defined.
        """
        by_part = {part: registered(text) for part, text in texts.items()}
        if None in by_part.values():
            return False
        for part, entry in _entries(by_part):
            _Function(self, part, entry) if entry.options is None else _Command(self, entry)
        sys.meta_path.insert(0, self)
        return True

    def load(self, name: str) -> None:
        """Load the scripts, which define everything again.

        Args:
            name: The command or function that is used.

        Raises:
            gdb.GdbError: the scripts are already loaded, and do not define it.
        """
        if self._loaded:
            raise gdb.GdbError(f"{name} does not work with this kernel")
        self._loaded = True
        sys.meta_path.remove(self)
        self._load()

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        """Load the scripts when the user's code imports one, with the usual handling of those that fail."""
        if not name.startswith(_PACKAGE):
            return None
        self.load(name)
        module = sys.modules.get(name)
        return None if module is None else spec_from_loader(name, _Loaded(module))  # type: ignore[arg-type]


class _Loaded:
    """A loader for a module that is already loaded."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Command(gdb.Command):
    def __init__(self, scripts: Scripts, entry: Registered) -> None:
        self.__doc__ = f"{entry.doc.rstrip()}\n\n{vmd_script_errors.UNLOADED}"
        self._scripts, self._name = scripts, entry.name
        super().__init__(entry.name, *(getattr(gdb, each) for each in entry.options or ()))

    def invoke(self, argument: str, from_tty: bool) -> None:
        self._scripts.load(self._name)
        try:
            gdb.execute(f"{self._name} {argument}", from_tty)
        except gdb.error as error:
            raise gdb.GdbError(str(error)) from None  # GDB prints it like an error of the command itself


class _Function(gdb.Function):
    def __init__(self, scripts: Scripts, part: str, entry: Registered) -> None:
        self.__doc__ = entry.doc
        self._scripts, self._part, self._entry = scripts, part, entry
        super().__init__(entry.name)

    def invoke(self, *arguments: gdb.Value) -> Any:
        self._scripts.load(f"${self._entry.name}")
        cls = getattr(sys.modules.get(self._part), self._entry.cls, None)
        if cls is None:
            raise gdb.GdbError(f"${self._entry.name} does not work with this kernel")
        return cls().invoke(*arguments)


def _entries(by_part: dict[str, list[Registered] | None]) -> Iterator[tuple[str, Registered]]:
    for part, entries in by_part.items():
        for entry in entries or ():
            yield part, entry
