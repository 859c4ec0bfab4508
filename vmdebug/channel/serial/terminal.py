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

from vmdebug.channel.serial.line import SerialLine
from vmdebug.deadline import wait_ready

LEAVE = b"\x1d"
"""Ctrl-], as in telnet and virsh; programs in a guest hardly use it."""

CHUNK = 4096

ENDS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that, by default, end a program without running its `finally` blocks."""


@contextlib.contextmanager
def interrupts() -> Iterator[int]:
    """Yield a descriptor that is readable once a signal with a handler has arrived in the block.

    A KeyboardInterrupt is lost where Python calls us back and ignores exceptions, such as a weak reference's
    callback. And a signal that arrives just before poll(2) does not end it. See `signal.set_wakeup_fd`.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield -1
        return
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def relay(line: SerialLine, stdin: int, show: Callable[[bytes], object], *, interrupted: int = -1) -> bool:
    """Copy bytes in both directions until Ctrl-] is typed or QEMU ends. A panic of the guest does not end it.

    Args:
        line: An open serial line.
        stdin: Descriptor to read from. If it is no terminal, Ctrl-] has no meaning in its bytes.
        show: Called with the guest's output.
        interrupted: The descriptor of `interrupts`; -1 for none.

    Returns:
        True if Ctrl-] was typed, False if QEMU has ended.

    Raises:
        KeyboardInterrupt: a signal has arrived.
        DeadlineError: the guest accepts no more input.
    """
    leave = LEAVE if os.isatty(stdin) else None
    source = stdin
    while True:
        ready = wait_ready(line.fileno(), source, interrupted, seconds=None)
        if interrupted in ready:
            raise KeyboardInterrupt
        for fd in ready:
            if fd != source:
                said = line.raw()
                if not said:
                    return False
                show(said)
                continue
            typed = os.read(stdin, CHUNK)
            before, left, _ = typed.partition(leave) if leave else (typed, b"", b"")
            line.send(before.decode("utf-8", "surrogateescape"))
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
