"""A person at the guest's serial line: keys go there as they are typed, what it says is shown."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from vmdebug.channel.serial.console import Console

LEAVE = b"\x1d"
"""Ctrl-], as in telnet and virsh: what a guest's programs do not use."""

CHUNK = 4096

ENDS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a program without unwinding it."""


def converse(console: Console, stdin: int, show: Callable[[bytes], object]) -> bool:
    """Carry bytes both ways until Ctrl-] or the guest's end; a panic is shown like all else.

    Args:
        console: An open console.
        stdin: Descriptor to read from: a terminal, on which Ctrl-] leaves, or something whose
            bytes are typed as they are.
        show: Called with what the guest says.

    Returns:
        Whether it was left; otherwise QEMU has ended.

    Raises:
        VmError: the guest takes no more input.
    """
    leave = LEAVE if os.isatty(stdin) else None
    poll = select.poll()
    poll.register(console, select.POLLIN)
    poll.register(stdin, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != stdin:
                said = console.raw()
                if not said:
                    return False
                show(said)
                continue
            typed = os.read(stdin, CHUNK)
            before, left, _ = typed.partition(leave) if leave else (typed, b"", b"")
            console.send(before.decode("utf-8", "surrogateescape"))
            if left:
                return True
            if not typed:
                # Not a terminal, or one that is gone: what was typed may still be answered.
                poll.unregister(stdin)


@contextlib.contextmanager
def raw(terminal: int) -> Iterator[None]:
    """Have a terminal hand every key on, Ctrl-C too; however the block ends, it is as before.

    Args:
        terminal: Its descriptor.
    """
    before = termios.tcgetattr(terminal)
    with _unwinding():
        try:
            tty.setraw(terminal)
            yield
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _unwinding() -> Iterator[None]:
    """Have a SIGTERM and a closed terminal unwind the program, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    before = {number: signal.signal(number, _unwind) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unwind(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - a signal handler's form
    raise SystemExit(128 + number)
