"""Whether drgn can be imported."""

from __future__ import annotations

from importlib import import_module

from vmdebug.errors import HostError

INSTALL = "install it: pip install 'vmdebug[drgn]'"


def need(what: str) -> None:
    """Check that drgn is installed.

    Args:
        what: What needs it, for the error: "vmdebug drgn".

    Raises:
        HostError: it is not.
    """
    try:
        import_module("drgn")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "drgn"
        why = "is not installed" if missing else f"cannot be imported: {error}"
        raise HostError(f"{what} needs drgn, which {why}", hint=INSTALL) from error
