"""Whether coverage.py, which is optional, is there."""

from __future__ import annotations

from importlib import import_module

from vmdebug.errors import HostError


def need(what: str) -> None:
    """Check that coverage.py is installed.

    Args:
        what: What needs it, for the error: "vmdebug cov report".

    Raises:
        HostError: it is not.
    """
    try:
        import_module("coverage")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "coverage"
        why = "is not installed" if missing else f"cannot be imported: {error}"
        raise HostError(
            f"{what} needs coverage.py, which {why}", hint="install it: pip install 'vmdebug[cov]'"
        ) from error
