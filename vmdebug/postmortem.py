"""What can be told about a guest that failed: a report of sections, collected as far as it can be.

Nothing here raises for what is missing: a section says why it has nothing, so that the
failure itself stays what is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.debugger import decode
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import VmdebugError
from vmdebug.guest import Kernel
from vmdebug.session import DebugSession
from vmdebug.vm import framing
from vmdebug.vm.trouble import Trouble

CONSOLE_LINES = 100
"""Lines of the console's end that a report shows."""

DMESG_LINES = 400
"""Lines of the kernel's own log that a report shows."""

FRAMES = 32
"""Frames of each CPU that a report shows."""

PART_SECONDS = 10.0
"""How long one part may take, so that one that hangs leaves time for the others."""

DUMP_SECONDS = 60.0
"""How long a vmcore may take: 0.7 s for 256 MB on a quiet machine."""

DUMP_FORMATS = ("kdump-raw-zlib", "kdump-zlib", "elf")
"""Of QMP's `DumpGuestMemoryFormat`, the best first. The compressed ones are a tenth as large as the guest's
memory. Without the raw one QEMU writes what makedumpfile(8) calls the flattened format, for pipes."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report.

    Args:
        title: What it shows: "console", "backtraces".
        text: It, or why there is none.
    """

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, in the order in which one wants to read it."""

    sections: tuple[Section, ...]

    def __str__(self) -> str:
        return "\n\n".join(f"--- {section.title} ---\n{section.text}" for section in self.sections)

    def write(self, directory: Path) -> tuple[Path, ...]:
        """Write each section into a file of its own, `console.txt`; return the files.

        Args:
            directory: Made if it is not there.

        Raises:
            OSError: it cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for section in self.sections:
            path = directory / f"{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}.txt"
            path.write_text(f"{section.text}\n", errors="backslashreplace")
            written.append(path)
        return tuple(written)


def collect(
    session: DebugSession,
    *,
    troubles: Iterable[Trouble] = (),
    dump: Path | None = None,
    deadline: Deadline,
) -> Report:
    """Collect what can be told about a session's guest.

    A guest that runs is stopped for GDB's questions, and goes on. Where no GDB is attached one is, for as
    long as they take; see `DebugSession.examined`.

    Args:
        session: The session, its VM in any state, also ended.
        troubles: What the kernel has complained about; told first, decoded.
        dump: Where to write a vmcore, for crash(8) and drgn; None writes none.
        deadline: For all of it; what does not come in time says so in its section.
    """
    parts = _Parts(deadline)
    rundir = session.vm.rundir
    troubles = tuple(troubles)
    if troubles:
        told = _told(troubles, session.vm.state.spec.kernel, deadline.at_most(PART_SECONDS))
        parts.sections += [Section(title, text) for title, text in zip(_titles(troubles), told, strict=True)]
    status = _status(session)
    parts.add("guest", lambda: _guest(session, status))
    parts.add("console", lambda: _console(rundir.console_log))
    if isinstance(status, VmdebugError):
        # Nor would the gdbstub answer: one thread of QEMU serves both.
        parts.sections.append(Section("GDB", f"not asked: {status.message}"))
    elif status != "exited":
        _ask_gdb(session, parts)
        if dump is not None:
            parts.add("vmcore", lambda: _dump(session, dump, deadline.at_most(DUMP_SECONDS)))
    parts.add("QEMU", lambda: rundir.qemu_log.read_text(errors="replace").strip())
    return Report(tuple(parts.sections))


class _Parts:
    """The sections of a report that is being made.

    Args:
        deadline: For all of them.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.sections: list[Section] = []

    def add(self, title: str, make: Callable[[], str]) -> None:
        """Add what is made, or why it cannot be."""
        try:
            self.deadline.left(f"the {title} to be asked for")
            text = make() or "nothing"
        except (VmdebugError, OSError) as error:
            text = f"not to be had: {error}"
        self.sections.append(Section(title, text))

    def seconds(self) -> float:
        """Return how long the next part may take."""
        return self.deadline.at_most(PART_SECONDS).left("the next part of a report")


def _titles(troubles: tuple[Trouble, ...]) -> list[str]:
    titles: list[str] = []
    for trouble in troubles:
        title = f"kernel {trouble.kind.replace('_', ' ')}"
        again = sum(each.startswith(title) for each in titles)
        titles.append(f"{title} {again + 1}" if again else title)
    return titles


_BETWEEN = "\n\f\n"


def _told(troubles: tuple[Trouble, ...], kernel: Kernel, deadline: Deadline) -> list[str]:
    """Return the splats' texts, decoded at once: most of the time goes into reading the symbols."""
    texts = [trouble.text for trouble in troubles]
    try:
        return decode.decode(_BETWEEN.join(texts), kernel, deadline).split(_BETWEEN)
    except VmdebugError as error:
        return [f"{text}\n\nnot decoded: {error.message}" for text in texts]


def _status(session: DebugSession) -> str | VmdebugError:
    try:
        return session.status
    except VmdebugError as error:
        return error


def _guest(session: DebugSession, status: str | VmdebugError) -> str:
    state = session.vm.state
    kernel = state.spec.kernel
    build = f", build-id {kernel.build_id}" if kernel.build_id else ""
    does = f"it is not known what it does: {status.message}" if isinstance(status, VmdebugError) else status
    return (
        f"{session.name}: {does}, {state.accel}\n"
        f"kernel {kernel.release or kernel.image}{build}\n"
        f"parameters {' '.join(state.spec.parameters)}"
    )


def _console(log: Path) -> str:
    return process.tail(framing.readable(log.read_bytes()).decode(errors="replace"), CONSOLE_LINES)


def _ask_gdb(session: DebugSession, parts: _Parts) -> None:
    exchanges = session.exchanges()  # before ours
    title = "GDB"
    try:
        seconds = parts.deadline.left("GDB to be asked")
        title = "stop" if exchanges else title
        with session.examined(timeout=seconds) as gdb:
            parts.add("backtraces", lambda: _backtraces(gdb, session.vm.state.spec.kernel, parts.seconds()))
            parts.add("dmesg", lambda: gdb.dmesg(limit=DMESG_LINES, timeout=parts.seconds()))
    except (VmdebugError, OSError) as error:
        parts.sections.append(Section(title, f"not to be had: {error}"))
        if title == "GDB":
            return
    parts.sections.append(Section("GDB", exchanges or "none was attached"))


def _backtraces(gdb: Gdb, kernel: Kernel, seconds: float) -> str:
    text = gdb.backtraces(limit=FRAMES, modules=kernel.modules, timeout=seconds)
    return text if kernel.source is None else text.replace(f"{kernel.source}/", "")


def _dump(session: DebugSession, path: Path, deadline: Deadline) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = session.vm.qmp("query-dump-guest-memory-capability", deadline=deadline)["formats"]
    chosen = next(each for each in DUMP_FORMATS if each in known)
    protocol = f"file:{path.absolute()}"
    session.vm.qmp("dump-guest-memory", paging=False, protocol=protocol, format=chosen, deadline=deadline)
    vmlinux = session.vm.state.spec.kernel.vmlinux or "VMLINUX"
    reader = f"crash {vmlinux} {path}" if chosen == "kdump-zlib" else f"drgn -c {path} -s {vmlinux}"
    return f"{path}, {path.stat().st_size >> 20} MiB, {chosen}\n{reader}"
