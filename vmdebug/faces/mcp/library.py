"""Whether the SDK of the Model Context Protocol can be imported."""

from __future__ import annotations

from importlib import import_module

from vmdebug.errors import HostError

INSTALL = "install it: pip install 'vmdebug[mcp]'"

_SERVER = "mcp.server.mcpserver"
"""New in version 2 of the SDK."""


def need() -> None:
    """Check that the SDK is installed.

    Raises:
        HostError: it is not, or it is too old.
    """
    try:
        import_module(_SERVER)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "mcp"
        why = "is not installed" if missing else f"is too old or broken: {error}"
        raise HostError(
            f"vmdebug mcp needs the Python package mcp, version 2 or newer, which {why}", hint=INSTALL
        ) from error
