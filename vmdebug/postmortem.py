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
from vmdebug.channel.serial import framing
from vmdebug.channel.serial.trouble import Trouble, as_logged
from vmdebug.deadline import Deadline
from vmdebug.debugger import decode
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import VmdebugError
from vmdebug.guest import Kernel
from vmdebug.session import DebugSession

CONSOLE_LINES = 100
"""Lines of the console's end that a report shows."""

DMESG_LINES = 100
"""Lines of the kernel's own log that a report shows."""

LOG_LINES = 100_000
"""Lines of that log that are read: for the file, and for what the console has told."""

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
        whole: All of it, for a file, where that is more.
    """

    title: str
    text: str
    whole: str = ""


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
            path.write_text(f"{section.whole or section.text}\n", errors="backslashreplace")
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
    status = _status(session)
    parts.add("guest", lambda: _guest(session, status))
    parts.add("console", lambda: _console(rundir.console_log), lines=CONSOLE_LINES)
    if isinstance(status, VmdebugError):
        # Nor would the gdbstub answer: one thread of QEMU serves both.
        parts.sections.append(Section("GDB", f"not asked: {status.message}"))
    elif status != "exited":
        _ask_gdb(session, parts)
        if dump is not None:
            parts.add("vmcore", lambda: _dump(session, dump, deadline.at_most(DUMP_SECONDS)))
    parts.add("QEMU", lambda: rundir.qemu_log.read_text(errors="replace").strip())
    told = _told(as_logged(troubles, parts.whole("dmesg")), session.vm.state.spec.kernel)
    return Report((*told, *parts.sections))


class _Parts:
    """The sections of a report that is being made.

    Args:
        deadline: For all of them.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.sections: list[Section] = []

    def add(self, title: str, make: Callable[[], str], *, lines: int | None = None) -> None:
        """Add what is made, or why it cannot be; of `lines` the last ones are shown."""
        try:
            self.deadline.left(f"the {title} to be asked for")
            text = make() or "nothing"
        except (VmdebugError, OSError) as error:
            text = f"not to be had: {error}"
        shown = text if lines is None else process.tail(text, lines)
        self.sections.append(Section(title, shown, whole=text))

    def whole(self, title: str) -> str:
        """Return all of a section; "" where there is none."""
        return next((section.whole for section in self.sections if section.title == title), "")

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


def _told(troubles: tuple[Trouble, ...], kernel: Kernel) -> list[Section]:
    """Return the splats, decoded at once: most of the time goes into reading the symbols.

    Whatever time the rest has taken: they are what is read first.
    """
    texts = [trouble.text for trouble in troubles]
    deadline = Deadline.after(PART_SECONDS)
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
    does = f"it is not known what it does: {status.message}" if isinstance(status, VmdebugError) else status
    return (
        f"{session.name}: {does}, {state.accel}\n"
        f"kernel {kernel.release or kernel.image}{build}\n"
        f"parameters {' '.join(state.spec.parameters)}"
    )


def _console(log: Path) -> str:
    return framing.readable(log.read_bytes()).decode(errors="replace").rstrip()


def _ask_gdb(session: DebugSession, parts: _Parts) -> None:
    exchanges = session.exchanges()  # before ours
    title = "GDB"
    try:
        seconds = parts.deadline.left("GDB to be asked")
        title = "stop" if exchanges else title
        with session.examined(timeout=seconds) as gdb:
            parts.add("backtraces", lambda: _backtraces(gdb, session.vm.state.spec.kernel, parts.seconds()))
            parts.add("dmesg", lambda: gdb.dmesg(limit=LOG_LINES, timeout=parts.seconds()), lines=DMESG_LINES)
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
    left = deadline.left("QEMU to list the formats of dumps")
    known = session.vm.qmp("query-dump-guest-memory-capability", timeout=left)["formats"]
    chosen = next(each for each in DUMP_FORMATS if each in known)
    protocol = f"file:{path.absolute()}"
    left = deadline.left("QEMU to dump the memory")
    session.vm.qmp("dump-guest-memory", paging=False, protocol=protocol, format=chosen, timeout=left)
    vmlinux = session.vm.state.spec.kernel.vmlinux or "VMLINUX"
    reader = f"crash {vmlinux} {path}" if chosen == "kdump-zlib" else f"drgn -c {path} -s {vmlinux}"
    return f"{path}, {path.stat().st_size >> 20} MiB, {chosen}\n{reader}"
