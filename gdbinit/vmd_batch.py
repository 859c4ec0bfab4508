"""A reliable exit status for GDB in batch mode.

The exit status of `gdb --batch` is that of its last command only; errors before it are lost. `vmd-run
COMMAND` records whether a command failed, and `vmd-exit` ends GDB with the resulting status.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import gdb

FAILED = 1
USAGE = 2
MISMATCH = 4
DEADLINE = 5
"""Exit statuses, those of the `vmdebug` command."""

BEFORE: list[Callable[[], None]] = []
"""Functions to call before each command of a batch; at a prompt, before_prompt events do this."""

_failed = 0


def batch() -> bool:
    """Whether GDB runs in batch mode: $vmd_batch is set."""
    return bool(gdb.convenience_variable("vmd_batch"))


def say(text: str) -> None:
    """Print a message, which is not a command's output, to stderr."""
    gdb.flush()
    gdb.write(f"{text}\n", gdb.STDERR)


def fail(text: str, status: int = FAILED) -> NoReturn:
    """End the command with an error. In batch mode end GDB, which detaches.

    Args:
        text: The error: one line with what was wanted and found, and one with what to do.
        status: GDB's exit status in batch mode.

    Raises:
        gdb.GdbError: always, outside batch mode.
    """
    if batch():
        say(text)
        leave(status)
    raise gdb.GdbError(text)


def leave(status: int) -> NoReturn:
    """End GDB with an exit status. GDB detaches, so the guest runs on."""
    gdb.flush()
    gdb.set_parameter("confirm", False)
    gdb.execute(f"quit {status}")
    raise AssertionError("GDB is gone")


class Run(gdb.Command):
    """Run a GDB command and record whether it failed: vmd-run COMMAND.

    Prints the command's output and errors. If it failed, vmd-exit later ends GDB with
    status 1; the commands in between still run.

    Example: gdb --batch -ex 'vmd-run info line foo' -ex vmd-exit
    """

    NAME = "vmd-run"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_USER, gdb.COMPLETE_COMMAND)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Run it."""
        global _failed  # noqa: PLW0603 - one GDB has one exit status
        try:
            for act in BEFORE:
                act()
            # `source` reports a missing file as an error only with from_tty.
            gdb.execute(argument, from_tty=argument.startswith("source "))
        except gdb.error as error:
            _failed = FAILED
            say(str(error))
        except KeyboardInterrupt:
            _failed = FAILED
            say("Quit")


class Exit(gdb.Command):
    """End GDB with status 1 if a vmd-run failed, else with 0: vmd-exit.

    GDB detaches, so the guest runs on.

    Example: gdb --batch -ex 'vmd-run info line foo' -ex vmd-exit
    """

    NAME = "vmd-exit"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_USER)

    def invoke(self, _argument: str, _from_tty: bool) -> None:
        """End it."""
        leave(_failed)
