"""The report about a guest that failed, in sections.

Collecting raises no errors, so that the original failure is reported: a section that cannot be collected
contains the reason.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdebug import process
from vmdebug.channel.log import kept, messages
from vmdebug.channel.log.trouble import Trouble, as_logged
from vmdebug.deadline import Deadline
from vmdebug.debugger import decode
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import VmdebugError
from vmdebug.guest import Kernel
from vmdebug.session import DebugSession
from vmdebug.vm.dump import readers as dump_readers
from vmdebug.vm.dump import write as write_dump

CONSOLE_LINES = 100
"""Number of the console's last lines in a report."""

DMESG_LINES = 100
"""Number of the kernel log's last lines in a report."""

LOG_LINES = 100_000
"""Number of lines of the kernel log to read, for the file and for the splats."""

FRAMES = 32
"""How many frames of each CPU a report shows."""

PART_SECONDS = 10.0
"""How long one section may take, so that a section that hangs leaves time for the others."""

DUMP_SECONDS = 60.0
"""How long a vmcore may take: 0.7 s for 256 MB on a quiet machine."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a report.

    Args:
        title: "console", "backtraces", …
        text: The text to show, or why there is none.
        whole: The whole text for a file; "" if `text` is all.
    """

    title: str
    text: str
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The sections, the most important first."""

    sections: tuple[Section, ...]

    def __str__(self) -> str:
        return "\n\n".join(f"--- {section.title} ---\n{section.text}" for section in self.sections)

    def write(self, directory: Path) -> tuple[Path, ...]:
        """Write each section to a file of its own, such as `console.txt`, and return the files.

        Args:
            directory: Created if it does not exist.

        Raises:
            OSError: a file cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for section in self.sections:
            path = directory / f"{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}.txt"
            try:
                path.write_text(f"{section.whole or section.text}\n", errors="backslashreplace")
            except OSError as error:
                error.filename = error.filename or str(path)  # write(2) has not named it
                raise
            written.append(path)
        return tuple(written)


def collect(
    session: DebugSession,
    *,
    troubles: Iterable[Trouble] = (),
    dump: Path | None = None,
    deadline: Deadline,
) -> Report:
    """Collect the report about a session's guest.

    A running guest is stopped while GDB is queried, and then resumed. If no GDB is attached, one is
    attached for the time; see `DebugSession.examined`.

    Args:
        session: The session; its VM may be in any state, or have ended.
        troubles: The kernel's splats; they come first, decoded.
        dump: File for a vmcore, for crash(8) and drgn; None for no vmcore.
        deadline: The deadline of the whole report; later sections contain an error.
    """
    parts = _Parts(deadline)
    rundir = session.vm.rundir
    status = _status(session)
    parts.add("guest", lambda: _guest(session, status))
    parts.add("console", lambda: _console(rundir.console_log), lines=CONSOLE_LINES)
    if isinstance(status, VmdebugError):
        # The gdbstub would not answer either: one thread of QEMU serves both.
        parts.sections.append(Section("GDB", f"not queried: {status.message}"))
    elif status != "exited":
        _ask_gdb(session, parts)
        if dump is not None:
            parts.add("vmcore", lambda: _dump(session, dump, deadline.at_most(DUMP_SECONDS)))
    parts.add("QEMU", lambda: rundir.qemu_log.read_text(errors="replace").strip())
    told = splats(as_logged(troubles, parts.whole("dmesg")), session.vm.state.spec.kernel)
    return Report((*told, *parts.sections))


class _Parts:
    """The sections of a report while it is collected.

    Args:
        deadline: For all of them.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.sections: list[Section] = []

    def add(self, title: str, make: Callable[[], str], *, lines: int | None = None) -> None:
        """Add a section, or why it cannot be collected; `lines` limits it to the last ones."""
        try:
            self.deadline.left(f"the {title}")
            text = make() or "nothing"
        except (VmdebugError, OSError) as error:
            text = f"not available: {error}"
        shown = text if lines is None else process.tail(text, lines)
        self.sections.append(Section(title, shown, whole=text))

    def whole(self, title: str) -> str:
        """Return the whole text of a section; "" if there is none."""
        return next((section.whole for section in self.sections if section.title == title), "")

    def seconds(self) -> float:
        """Return how long the next section may take."""
        return self.deadline.at_most(PART_SECONDS).left("the next section of a report")


def _titles(troubles: Sequence[Trouble]) -> list[str]:
    titles: list[str] = []
    for trouble in troubles:
        title = f"kernel {trouble.kind.replace('_', ' ')}"
        again = sum(each.startswith(title) for each in titles)
        titles.append(f"{title} {again + 1}" if again else title)
    return titles


_INTERLEAVED = "interleaved with what another CPU printed; CONFIG_PRINTK_CALLER tells them apart\n"

_BETWEEN = "\n\f\n"


def splats(troubles: Sequence[Trouble], kernel: Kernel, *, seconds: float = PART_SECONDS) -> list[Section]:
    """Return splats as sections, decoded together: reading the symbols takes most of the time.

    They have a deadline of their own, because they are read first.

    Args:
        troubles: The splats.
        kernel: The kernel that printed them.
        seconds: How long it may take to find source lines; afterwards they are shown without.
    """
    texts = [_INTERLEAVED * trouble.interleaved + trouble.text for trouble in troubles]
    deadline = Deadline.after(seconds)
    try:
        texts = decode.decode(_BETWEEN.join(texts), kernel, deadline).split(_BETWEEN) if texts else []
    except VmdebugError as error:
        texts = [f"{text}\n\nnot decoded: {error.message}" for text in texts]
    return [Section(title, text) for title, text in zip(_titles(troubles), texts, strict=True)]


def _status(session: DebugSession) -> str | VmdebugError:
    try:
        return session.status
    except VmdebugError as error:
        return error


def _guest(session: DebugSession, status: str | VmdebugError) -> str:
    state = session.vm.state
    kernel = state.spec.kernel
    build = f", build-id {kernel.build_id}" if kernel.build_id else ""
    does = f"its status is unknown: {status.message}" if isinstance(status, VmdebugError) else status
    return (
        f"{session.name}: {does}, {state.accel}\n"
        f"kernel {kernel.release or kernel.image}{build}\n"
        f"parameters {' '.join(state.spec.parameters)}"
    )


def _console(log: Path) -> str:
    return messages.readable(kept.read(log).data).decode(errors="replace").rstrip()


def _ask_gdb(session: DebugSession, parts: _Parts) -> None:
    exchanges = session.exchanges()  # before this function asks GDB
    title = "GDB"
    try:
        seconds = parts.deadline.left("the questions to GDB")
        title = "stop" if exchanges else title
        with session.examined(timeout=seconds) as gdb:
            parts.add("backtraces", lambda: _backtraces(gdb, session.vm.state.spec.kernel, parts.seconds()))
            if blocked := _blocked(session):
                parts.sections.append(Section("blocked tasks", blocked))
            parts.add("dmesg", lambda: gdb.dmesg(limit=LOG_LINES, timeout=parts.seconds()), lines=DMESG_LINES)
    except (VmdebugError, OSError) as error:
        parts.sections.append(Section(title, f"not available: {error}"))
        if title == "GDB":
            return
    parts.sections.append(Section("GDB", exchanges or "none was attached"))


def _backtraces(gdb: Gdb, kernel: Kernel, seconds: float) -> str:
    text = gdb.backtraces(limit=FRAMES, modules=kernel.module_files(), timeout=seconds)
    return text if kernel.source is None else text.replace(f"{kernel.source}/", "")


def _blocked(session: DebugSession) -> str:
    """Return the tasks that wait without being interruptible, with what they wait for; "" if there are none.

    Only drgn can tell; without it, GDB would take seconds for a long list of tasks.
    """
    kernel = session.vm.state.spec.kernel
    if kernel.vmlinux is None or importlib.util.find_spec("drgn") is None:
        return ""
    from vmdebug.drgn_program import tasks  # noqa: PLC0415 - drgn is optional

    try:
        text = tasks.blocked(session.drgn, session.stack_trace)
    except Exception as error:  # noqa: BLE001 - drgn's errors have no common class
        return f"not available: {error}"
    return text if kernel.source is None else text.replace(f"{kernel.source}/", "")


def _dump(session: DebugSession, path: Path, deadline: Deadline) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = write_dump(session.vm, path, timeout=deadline.left("QEMU to dump the memory"))
    readers = dump_readers(made, session.vm.state.spec.kernel)
    return "\n".join([f"{path}, {made.size >> 20} MiB, {made.format}", *readers])
