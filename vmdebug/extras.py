"""The optional packages: imports one, or says which extra of vmdebug installs it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from vmdebug.errors import HostError


class Extra(NamedTuple):
    """An extra of pyproject.toml.

    Args:
        name: Its name there.
        package: What it installs, for messages.
        module: The module to import, which versions that are too old do not have.
    """

    name: str
    package: str
    module: str

    @property
    def install(self) -> str:
        """How to install it: the hint of an error."""
        return f"install it: pip install 'vmdebug[{self.name}]'"

    def need(self, what: str, *, instead: str = "") -> ModuleType:
        """Import the package, and return its module.

        Args:
            what: What needs it, for the error: "vmdebug cov report".
            instead: What does without it, for the hint.

        Raises:
            HostError: it is not installed, too old or broken.
        """
        try:
            return import_module(self.module)
        except ImportError as error:
            top = self.module.partition(".")[0]
            missing = isinstance(error, ModuleNotFoundError) and error.name == top
            why = "is not installed" if missing else f"is too old or broken: {error}"
            hint = f"{self.install}; or {instead}" if instead else self.install
            raise HostError(f"{what} needs {self.package}, which {why}", hint=hint) from error


COV = Extra("cov", "coverage.py", "coverage")
DRGN = Extra("drgn", "drgn", "drgn")
GDB = Extra("gdb", "gdb-for-pwndbg", "gdb_for_pwndbg")
HUNT = Extra("hunt", "dask.distributed", "distributed")
MCP = Extra("mcp", "the Python package mcp, version 2 or newer", "mcp.server.mcpserver")
PERFETTO = Extra(
    "perfetto", "the Python package perfetto", "perfetto.protos.perfetto.trace.perfetto_trace_pb2"
)
