"""Coverage of the kernel by tests: `pytest --vmdebug-cov`. Each test is a context of the data file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmdebug import extras
from vmdebug.covering import Coverage
from vmdebug.errors import VmdebugError
from vmdebug.plugin.settings import CoverageSettings
from vmdebug.session import DebugSession
from vmdebug.trace.coverage import changes
from vmdebug.trace.coverage.kernel_code import KernelCode
from vmdebug.trace.coverage.mapping import Lines, merged

_OUTPUTS = {"html": "kernel-coverage", "lcov": "kernel.info", "xml": "kernel.xml", "json": "kernel.json"}


class TestCoverage:
    """What the tests of this process executed.

    Args:
        settings: The settings.
        worker: The name of this worker of pytest-xdist; "" without it.
    """

    __test__ = False

    def __init__(self, settings: CoverageSettings, worker: str) -> None:
        extras.COV.need("--vmdebug-cov")
        self._settings = settings
        self._worker = worker
        self._tests: dict[Path, tuple[KernelCode, dict[str, dict[str, Lines]]]] = {}
        self.notes: dict[str, None] = {}

    def begin(self, session: DebugSession) -> Coverage:
        """Record what a test's guest executes from now on.

        Raises:
            VmdebugError: see `Coverage.begin`.
        """
        cover = session.coverage(source=self._settings.source)
        cover.begin()
        return cover

    def end(self, cover: Coverage, test: str) -> None:
        """Add what a guest has executed to its test.

        Raises:
            VmdebugError: the lines have no names.
        """
        cover.end()
        code = cover.code
        _, contexts = self._tests.setdefault(code.vmlinux, (code, {}))
        contexts[test] = merged((contexts.get(test, {}), cover.files))
        self.notes |= dict.fromkeys(cover.notes)

    def finish(self) -> None:
        """Write the data file, or that of this worker."""
        from vmdebug.trace.coverage import library  # noqa: PLC0415 - coverage.py is slow to import

        path = self._settings.file
        path = path.with_name(f"{path.name}.{self._worker}") if self._worker else path
        for number, (code, contexts) in enumerate(self._tests.values()):
            known = code.known(merged(contexts.values()))
            names = set(known.selected(self._settings.paths) if self._settings.paths else known.files)
            kept = {
                test: {file: lines for file, lines in files.items() if file in names}
                for test, files in contexts.items()
            }
            library.save(path, known, kept, append=number > 0)


def summary(terminal: Any, settings: CoverageSettings) -> None:
    """Write the reports, and print the table and the lines that no test reached."""
    terminal.section("vmdebug coverage")
    try:
        for line in _summary(settings):
            terminal.line(line)
    except VmdebugError as error:
        for line in (f"no report: {error.message}", error.hint):
            if line:
                terminal.line(line, red=True)


def clean(settings: CoverageSettings) -> None:
    """Remove the data files of earlier runs."""
    for path in (settings.file, settings.file.with_name(f"{settings.file.name}-lines")):
        path.unlink(missing_ok=True)
    for path in _parts(settings.file):
        path.unlink()


def _parts(path: Path) -> list[Path]:
    """Return the data files of workers, and what is beside them."""
    return sorted(path.parent.glob(f"{path.name}.gw*"))


def _summary(settings: CoverageSettings) -> Iterator[str]:
    from vmdebug.trace.coverage import library  # noqa: PLC0415 - coverage.py is slow to import

    parts = [each for each in _parts(settings.file) if not each.name.endswith("-lines")]
    if parts:
        library.combine(settings.file, parts)
    if not settings.file.exists():
        yield "no test ran the kernel of a guest"
        return
    data = library.Data(settings.file)
    files = data.files(settings.paths)
    for form, where in settings.outputs:
        path = settings.file.parent / (where or _OUTPUTS.get(form, ""))
        _, text = library.report(settings.file, form, None if form == "term" else path, files)
        yield from text.rstrip("\n").splitlines() if form == "term" else [f"wrote {os.path.relpath(path)}"]
    if settings.diff:
        found = data.unreached(settings.diff)
        yield (
            f"changed since {settings.diff} and not reached by any test:"
            if found
            else (f"all lines with code that changed since {settings.diff} were reached")
        )
        for file, lines in sorted(found.items()):
            yield f"  {file}: {changes.ranges(lines)}"
    yield f"data file: {os.path.relpath(settings.file)}"
