"""The guests that an agent may start, and the options that it may set.

A GUEST of the command line can be a program that runs on the host, such as a flake or a runner, and a kernel
tree brings scripts for GDB. So a person names the guests: in vmdebug.toml, or on the server's command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdebug import config
from vmdebug.errors import UsageError
from vmdebug.guest_options import GuestOptions, StartOptions, changed

BUILTIN = "builtin"

_PARAMETERS = re.compile(r"[^\x00-\x1f\x7f$`\\\"]*")
"""Kernel parameters that no shell of a guest's start-up script can expand."""


@dataclass(frozen=True, slots=True)
class Permitted:
    """The guests that a person has permitted.

    Args:
        words: GUESTs of the server's command line.
        directory: Where relative paths and the search for vmdebug.toml start.
    """

    words: tuple[str, ...]
    directory: Path

    @classmethod
    def of(cls, words: Sequence[str | os.PathLike[str]], directory: Path | None = None) -> Permitted:
        """Return the guests of the command line and of the nearest vmdebug.toml.

        Args:
            words: GUESTs.
            directory: See the class; None is the current directory.
        """
        return cls(tuple(os.fspath(each) for each in words), directory or Path.cwd())

    def names(self) -> tuple[str, ...]:
        """Return all of them, as the tool `start` takes them.

        Raises:
            UsageError: vmdebug.toml is invalid.
        """
        return tuple(dict.fromkeys((BUILTIN, *config.names(self.directory), *self.words)))

    def options(self, guest: str | None, options: StartOptions) -> GuestOptions:
        """Return a guest's options with those of the agent.

        Args:
            guest: One of `names`; None: the default of vmdebug.toml, else `builtin`.
            options: What the agent sets.

        Raises:
            UsageError: a person has not permitted that guest, or an option is wrong.
        """
        names = self.names()
        if guest is not None and guest not in names:
            raise UsageError(
                f"this server may not start the guest {guest!r}",
                hint=f"it may start: {', '.join(names)}; a person permits others: vmdebug mcp --guest GUEST",
            )
        if not _PARAMETERS.fullmatch(options.get("append", "")):
            raise UsageError(
                f"append={options.get('append')!r} has a character that is refused here",
                hint='kernel parameters without control characters, $, `, \\ and "',
            )
        return changed(config.lookup(guest, self.directory), options)
