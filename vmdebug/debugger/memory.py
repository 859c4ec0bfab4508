"""Reads objects for values: by the MI commands of `gdbinit/vmd_mi.py`, which also describe the types."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from vmdebug.debugger import gdb_errors, mi
from vmdebug.debugger.layout import Layout, Layouts
from vmdebug.errors import GdbError

COMMAND_SECONDS = 30.0
"""How long GDB may take over a command that does not run the guest."""

Ask = Callable[[str, float], Mapping[str, Any]]
"""Executes an MI command within that many seconds, and returns the values in its result."""


class ObjectCopy(msgspec.Struct, frozen=True):
    """The bytes of one object, at the time when they were read.

    Args:
        data: The bytes; none for a function.
        type: Number of its layout.
        address: Its address; None if it is not in memory.
        missing: The parts that the compiler has optimised out.
    """

    data: bytes
    type: int
    address: int | None = None
    missing: tuple[tuple[int, int], ...] = ()


class _About(msgspec.Struct, frozen=True):
    type: int
    address: int | None
    missing: tuple[tuple[int, int], ...]
    layouts: tuple[Layout, ...]


class Memory:
    """Reads objects, each in one round trip.

    Args:
        ask: Executes an MI command, and returns the values in its result.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.layouts = Layouts()

    def evaluate(self, expression: str, context: str = "", timeout: float = COMMAND_SECONDS) -> ObjectCopy:
        """Return the value of an expression.

        Args:
            expression: In the language of the frame.
            context: MI options that name thread and frame; "" is the selected frame.
            timeout: Seconds for GDB to answer.

        Raises:
            GdbError: GDB cannot evaluate it.
        """
        try:
            return self._read(f"-vmd-value{context}", mi.quote(expression), timeout)
        except GdbError as error:
            raise gdb_errors.renamed(error, f"`{expression}` cannot be evaluated") from error

    def variable(self, kind: str, name: str, context: str, timeout: float) -> ObjectCopy | Sequence[str]:
        """Return an argument or a local variable of a frame.

        Args:
            kind: "argument" or "local".
            name: Its name.
            context: MI options that name thread and frame.
            timeout: Seconds for GDB to answer.

        Returns:
            The variable; or the names of the frame's variables, if it does not exist.

        Raises:
            GdbError: GDB cannot read it, or has no debugging information.
        """
        known = len(self.layouts)
        command = f"-vmd-variable{context} {known} {kind} {mi.quote(name)}"
        try:
            answer = self._ask(command, timeout)
        except GdbError as error:
            raise gdb_errors.renamed(error, f"the {kind} `{name}` cannot be read") from error
        names = answer.get("names")
        return self._decoded(command, answer, known) if names is None else tuple(names)

    def per_cpu(self, variable: str, cpu: int, timeout: float) -> ObjectCopy:
        """Return a CPU's copy of a per-CPU variable.

        Args:
            variable: Its name, or a member of it.
            cpu: The kernel's number of the CPU.
            timeout: Seconds for GDB to answer.

        Raises:
            GdbError: there is no such variable, or no such CPU.
        """
        try:
            return self._read("-vmd-per-cpu", f"{cpu} {mi.quote(variable)}", timeout)
        except GdbError as error:
            raise gdb_errors.renamed(error, f"`{variable}` of CPU {cpu} cannot be read") from error

    def per_cpu_element(self, number: int, address: int, cpu: int) -> ObjectCopy:
        """Return what a per-CPU pointer points to on a CPU.

        Args:
            number: Layout of the pointer.
            address: The value of the pointer.
            cpu: The kernel's number of the CPU.

        Raises:
            GdbError: GDB cannot read it, or there is no such CPU.
        """
        return self._read("-vmd-per-cpu-ptr", f"{number} {address} {cpu}")

    def element(self, number: int, address: int, index: int) -> ObjectCopy:
        """Return an element of an array, or what a pointer points to at an index.

        Args:
            number: Layout of the pointer or array.
            address: The value of the pointer, or the address of the array.
            index: Index of the element.

        Raises:
            GdbError: GDB cannot read it.
        """
        return self._read("-vmd-element", f"{number} {address} {index}")

    def string(self, address: int, limit: int) -> bytes:
        """Return the bytes up to the first NUL, at most `limit`.

        Raises:
            GdbError: GDB cannot read them.
        """
        return base64.b64decode(self._ask(f"-vmd-string {address} {limit}", COMMAND_SECONDS)["data"])

    def _read(self, command: str, rest: str, timeout: float = COMMAND_SECONDS) -> ObjectCopy:
        known = len(self.layouts)
        command = f"{command} {known} {rest}"
        return self._decoded(command, self._ask(command, timeout), known)

    def _decoded(self, command: str, answer: Mapping[str, Any], known: int) -> ObjectCopy:
        try:
            about = msgspec.json.decode(base64.b64decode(answer["about"]), type=_About)
        except (KeyError, ValueError, msgspec.MsgspecError) as error:
            raise GdbError(
                "the answer of vmdebug's part in GDB has an unknown form", command=command, detail=str(error)
            ) from error
        self.layouts.add(known, about.layouts)
        return ObjectCopy(base64.b64decode(answer["data"]), about.type, about.address, about.missing)
