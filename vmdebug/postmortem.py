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
from vmdebug.errors import VmdebugError
from vmdebug.session import DebugSession
from vmdebug.vm import framing
from vmdebug.vm.trouble import Trouble

CONSOLE_LINES = 100
"""Lines of the console's end that a report shows."""


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
        """Write each section into a file of its own; return the files.

        Args:
            directory: Made if it is not there.

        Raises:
            OSError: it cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for section in self.sections:
            path = directory / f"{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}.txt"
            path.write_text(f"{section.text}\n", errors="surrogateescape")
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

    GDB is attached for it if it isn't, which stops the guest.

    Args:
        session: The session, its VM in any state, also ended.
        troubles: What the kernel has complained about; told first, decoded.
        dump: Where to write a vmcore.
        deadline: For all of it; what does not come in time says so in its section.
    """
    del dump  # until it is written
    troubles = tuple(troubles)
    log = session.vm.rundir.console_log
    sections = [Section(f"kernel {each.kind}", each.text) for each in troubles]
    sections.append(_section("console", lambda: _console(log), deadline))
    sections.append(
        _section("QEMU", lambda: session.vm.rundir.qemu_log.read_text(errors="replace"), deadline)
    )
    return Report(tuple(sections))


def _section(title: str, make: Callable[[], str], deadline: Deadline) -> Section:
    try:
        deadline.left(title)
        text = make()
    except (VmdebugError, OSError) as error:
        text = f"not to be had: {error}"
    return Section(title, text or "nothing")


def _console(log: Path) -> str:
    return process.tail(framing.readable(log.read_bytes()).decode(errors="replace"), CONSOLE_LINES)
