"""Connects a person's terminal to the guest's serial line."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from vmdebug.channel.serial.console import Console
from vmdebug.deadline import wait_ready

LEAVE = b"\x1d"
"""Ctrl-], as in telnet and virsh; programs in a guest hardly use it."""

CHUNK = 4096

ENDS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that, by default, end a program without running its `finally` blocks."""


def relay(console: Console, stdin: int, show: Callable[[bytes], object]) -> bool:
    """Copy bytes in both directions until Ctrl-] is typed or QEMU ends. A panic of the guest does not end it.

    Args:
        console: An open console.
        stdin: Descriptor to read from. If it is no terminal, Ctrl-] has no meaning in its bytes.
        show: Called with the guest's output.

    Returns:
        True if Ctrl-] was typed, False if QEMU has ended.

    Raises:
        VmError: the guest accepts no more input.
    """
    leave = LEAVE if os.isatty(stdin) else None
    source = stdin
    while True:
        for fd in wait_ready(console.fileno(), source, seconds=None):
            if fd != source:
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
                # The input has ended, but the guest may still answer.
                source = -1


@contextlib.contextmanager
def raw(terminal: int) -> Iterator[None]:
    """Put a terminal into raw mode, in which Ctrl-C is a byte, and restore it after the block.

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
    """Raise SystemExit at SIGTERM and SIGHUP, so that the terminal is restored."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
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
