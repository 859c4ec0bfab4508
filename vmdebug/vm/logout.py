"""What the end of a user's last session does to a VM that `start` has left running."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

LINGER = Path("/var/lib/systemd/linger")
"""A file for each user whose runtime directory stays; see `enable-linger` in loginctl(1)."""

_LOGIND = Path("/run/user")
"""Where systemd-logind makes runtime directories, and removes them with the last session."""


def warning(directory: Path) -> str:
    """Return what happens to a run directory when the user logs out, and how to prevent it; "" if nothing."""
    own = _LOGIND / str(os.geteuid())
    if not directory.is_relative_to(own) or (LINGER / _user()).exists():
        return ""
    return (
        f"at logout systemd removes {own} with this VM's sockets, and `stop` can only kill it"
        "\n      to keep it: loginctl enable-linger"
    )


def _user() -> str:
    with contextlib.suppress(KeyError):  # no entry in the password file
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())
