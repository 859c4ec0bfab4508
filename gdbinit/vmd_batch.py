"""What a GDB in batch mode gives back: an exit status that can be relied on.

`gdb --batch` ends with the status of its last command only; an error before that is lost.
`vmd-run COMMAND` remembers whether any failed, `vmd-exit` ends GDB with the status.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import gdb

FAILED = 1
USAGE = 2
MISMATCH = 4
DEADLINE = 5
"""Exit statuses, the same as those of the `vmdebug` command."""

BEFORE: list[Callable[[], None]] = []
"""Called before each command of a batch: what happens before a prompt when there is one."""

_failed = 0


def batch() -> bool:
    """Whether nobody sits at the prompt; `set $vmd_batch = 1` says so."""
    return bool(gdb.convenience_variable("vmd_batch"))


def say(text: str) -> None:
    """Tell the user something that is not what a command prints: it goes to stderr."""
    gdb.flush()
    gdb.write(f"{text}\n", gdb.STDERR)


def fail(text: str, status: int = FAILED) -> NoReturn:
    """End the command with an error; in batch mode end GDB, which detaches it.

    Args:
        text: The error, one line of what was wanted and found, and one of what to do.
        status: GDB's exit status in batch mode.

    Raises:
        gdb.GdbError: always, outside batch mode.
    """
    if batch():
        say(text)
        leave(status)
    raise gdb.GdbError(text)


def leave(status: int) -> NoReturn:
    """End GDB with an exit status; it detaches, so the guest goes on."""
    gdb.flush()
    gdb.set_parameter("confirm", False)
    gdb.execute(f"quit {status}")
    raise AssertionError("GDB is gone")


class Run(gdb.Command):
    """Run a GDB command, and remember whether it failed: vmd-run COMMAND.

    Its output and its errors are shown as ever; the next command runs in either case.
    vmd-exit then ends GDB with status 1.

    Example: gdb --batch -ex 'vmd-run info line foo' -ex vmd-exit
    """

    NAME = "vmd-run"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_USER, gdb.COMPLETE_COMMAND)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Run it."""
        global _failed  # noqa: PLW0603 - one GDB, one exit status
        try:
            for act in BEFORE:
                act()
            # `source` takes a file that is not there for an error only when a person has typed it.
            gdb.execute(argument, from_tty=argument.startswith("source "))
        except gdb.error as error:
            _failed = FAILED
            say(str(error))
        except KeyboardInterrupt:
            _failed = FAILED
            say("Quit")


class Exit(gdb.Command):
    """End GDB: with status 1 if a vmd-run failed, else with 0.

    GDB detaches, so the guest runs on.

    Example: gdb --batch -ex 'vmd-run info line foo' -ex vmd-exit
    """

    NAME = "vmd-exit"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_USER)

    def invoke(self, _argument: str, _from_tty: bool) -> None:
        """End it."""
        leave(_failed)
