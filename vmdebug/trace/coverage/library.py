"""coverage.py: its data file with a context for each test, and its reports, for C source.

This is also a plugin of coverage.py, so that its own commands report on the kernel: name this module in
`[run] plugins` of its configuration. What code there is, executed or not, is in a second file beside the data
file, because coverage.py's has no place for it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from coverage import Coverage, CoverageData, CoveragePlugin, FileReporter
from coverage.exceptions import CoverageException
from coverage.html import HtmlDataGeneration
from coverage.plugin import CodeRegion

from vmdebug import paths
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError
from vmdebug.paths import write_atomically
from vmdebug.trace.coverage import changes, source_text
from vmdebug.trace.coverage.mapping import EXIT, Known, Lines

TRACER = f"{__name__}.KernelSource"
"""The name of the plugin in data files."""

_SUFFIX = "-lines"
"""What is added to the name of a data file for the second file; `coverage combine` takes no such name."""

_ENTRY = -1
"""Where an executed line is come from, in the data file: a file with branches has no other form for lines."""

_UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
"""Errors of the system, and not of a file of another kind; see https://sqlite.org/rescode.html."""


def save(
    path: Path, known: Known, contexts: Mapping[str, Mapping[str, Lines]], *, append: bool = False
) -> None:
    """Write a data file and the file beside it.

    Args:
        path: The data file.
        known: What code there is.
        contexts: What was executed, by source file, in each context.
        append: Whether to keep what the file has already.

    Raises:
        HostError: they cannot be written; both are as they were.
        UsageError: it is another kind of file.
    """
    with _refusing(path), _replacing(path, keep=append) as new:
        data = CoverageData(basename=str(new))
        data.read()
        for context, files in contexts.items():
            data.set_context(context)
            data.add_arcs({file: _arcs(lines) for file, lines in files.items()})
        data.touch_files(list(known.files), TRACER)
        data.add_file_tracers(dict.fromkeys(known.files, TRACER))
        data.write()
        data.close()
        if append and beside(path).exists():
            known = _read(beside(path)).merged(known)
        write_atomically(beside(path), msgspec.json.encode(known))


@contextlib.contextmanager
def _replacing(path: Path, *, keep: bool) -> Iterator[Path]:
    """Replace a file by another one when the block ends without an exception.

    Args:
        path: The file.
        keep: Whether the new one begins as a copy of it.

    Yields:
        The path of the new file, in the same directory.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:40]}.") as directory:
        new = Path(directory, path.name)
        if keep and path.exists():
            shutil.copyfile(path, new)
        yield new
        new.replace(path)


def combine(path: Path, parts: Iterable[Path], *, append: bool = False) -> None:
    """Write the data files of several processes as one, and remove them.

    Raises:
        HostError: it cannot be written.
        UsageError: one is another kind of file.
    """
    parts = tuple(parts)
    known: Known | None = None
    with _refusing(path), _replacing(path, keep=append) as new:
        if append and beside(path).exists():
            known = _read(beside(path))
        data = CoverageData(basename=str(new))
        data.read()
        for part in parts:
            other = CoverageData(basename=str(part))
            other.read()
            data.update(other)
            other.close()
            there = _read(beside(part))
            known = there if known is None else known.merged(there)
        data.write()
        data.close()
        if known is not None:
            write_atomically(beside(path), msgspec.json.encode(known))
    with _refusing(path):
        for part in parts:
            part.unlink()
            beside(part).unlink()


def beside(path: Path) -> Path:
    """Return the path of the file that says what code there is."""
    return path.with_name(path.name + _SUFFIX)


def _arcs(lines: Lines) -> list[tuple[int, int]]:
    return sorted({*lines.branches, *((_ENTRY, line) for line in lines.lines)})


def _read(path: Path) -> Known:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Known)
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} does not exist, which says what code there is",
            hint="it belongs to the data file: keep both together",
        ) from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is damaged: {error}", hint="collect the coverage again") from error


@contextlib.contextmanager
def _refusing(path: Path) -> Any:
    try:
        yield
    except CoverageException as error:
        cause = error.__cause__
        if isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode & 0xFF in _UNWRITABLE:
            raise HostError(
                f"cannot write {path}: {cause}; {paths.file_system(path)}",
                hint="make room there, or give another path",
            ) from error
        raise UsageError(
            f"{path} is not a data file of coverage.py: {error}", hint="give another path for the data file"
        ) from error
    except OSError as error:
        raise HostError(
            f"cannot write {error.filename or path}: {error.strerror}",
            hint="make room there, or give another path",
        ) from error


class Data:
    """A data file.

    Args:
        path: The file.

    Raises:
        UsageError: it does not exist, or is another kind of file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UsageError(
                f"{path} does not exist", hint="collect coverage first: vmdebug cov start, vmdebug cov stop"
            )
        self.path = path
        self.known = _read(beside(path))
        self._data = CoverageData(basename=str(path))
        with _refusing(path):
            self._data.read()

    def contexts(self) -> list[str]:
        """Return the names of the contexts."""
        return sorted(self._data.measured_contexts())

    def files(self, wanted: Sequence[str]) -> list[str]:
        """Return the files of a report: those in `wanted`, see `Known.selected`; or those that were executed.

        Raises:
            UsageError: the kernel has no code from there.
        """
        if wanted:
            return self.known.selected(wanted)
        return sorted(each for each in self.known.files if self._data.arcs(each))

    def executed(self, file: str) -> Lines:
        """Return what was executed of a file, in any context."""
        arcs = frozenset(self._data.arcs(file) or ())
        lines = frozenset(line for arc in arcs for line in arc if line > 0)
        return Lines(
            lines=lines & self.known.files[file].lines, branches=arcs & self.known.files[file].branches
        )

    def unreached(self, revision: str) -> dict[str, frozenset[int]]:
        """Return the changed lines that have code and were not executed, by path in the tree.

        Raises:
            VmdebugError: see `changes.changed`.
        """
        root = Path(self.known.root)
        there = changes.changed(root, revision, Deadline.after(changes.GIT_SECONDS))
        code = {file: lines.lines for file, lines in self.known.files.items() if file in there}
        executed = {file: self.executed(file).lines for file in code}
        found = changes.unreached(there, code, executed)
        return {os.path.relpath(file, root): lines for file, lines in found.items()}

    def contexts_of(self, file: str) -> dict[int, list[str]]:
        """Return the contexts in which each line of a file was executed."""
        return {line: sorted(each) for line, each in self._data.contexts_by_lineno(file).items() if line > 0}


def report(path: Path, form: str, where: Path | None, files: Sequence[str]) -> tuple[float, str]:
    """Make a report of a data file.

    Args:
        path: The data file.
        form: "term", "html", "lcov", "xml" or "json".
        where: The file or the directory for it; None for "term", which is returned.
        files: The source files in it.

    Returns:
        The percentage of lines and branches that were executed, and the report for the terminal.

    Raises:
        UsageError: the data file is not one, or no file is in it.
        HostError: it cannot be written.
    """
    cover = Coverage(data_file=str(path), config_file=False, branch=True)
    cover.set_option("run:plugins", [__name__])
    cover.set_option(f"{__name__}:lines", str(beside(path)))
    text = io.StringIO()
    options: dict[str, Any] = {"morfs": list(files), "ignore_errors": True}
    try:
        cover.load()
        if form == "term":
            percent = cover.report(file=text, show_missing=True, **options)
        elif form == "html":
            percent = _pages(cover, where, options)
        elif form == "json":
            percent = cover.json_report(outfile=str(where), show_contexts=True, **options)
        else:
            make = cover.lcov_report if form == "lcov" else cover.xml_report
            percent = make(outfile=str(where), **options)
    except CoverageException as error:
        raise UsageError(f"coverage.py makes no {form} report of {path}: {error}") from error
    except OSError as error:
        raise HostError(
            f"cannot write {error.filename or where}: {error.strerror}", hint="give another path"
        ) from error
    finally:
        with contextlib.suppress(CoverageException):
            cover.get_data().close()
    return percent, text.getvalue()


def _pages(cover: Coverage, where: Path | None, options: Mapping[str, Any]) -> float:
    """Make the pages of a report; see `_Pages`."""
    title = "Coverage of the kernel"
    with mock.patch("coverage.html.HtmlDataGeneration", _Pages):
        return cover.html_report(directory=str(where), show_contexts=True, title=title, **options)


class _Pages(HtmlDataGeneration):
    """coverage.py's pages refuse a line with more than one missing branch: a line of Python has two at most.

    A line of C has more: a loop, a condition with &&, or copies of a line that the compiler has made.
    """

    def data_for_file(self, fr: FileReporter, analysis: Any) -> Any:
        found = super().data_for_file(fr, analysis)
        for line in found.lines:
            if len(line.long_annotations) > 1:
                line.long_annotations[:] = ["; ".join(line.long_annotations)]
        return found


class KernelSource(CoveragePlugin):
    """The plugin: it says which lines of a C file have code.

    Args:
        known: What code there is.
    """

    def __init__(self, known: Known) -> None:
        self._known = known

    def file_reporter(self, filename: str) -> CFile:
        """Return what coverage.py needs to know about a source file."""
        return CFile(filename, self._known)


class CFile(FileReporter):
    """A source file of the kernel.

    Args:
        filename: Its path.
        known: What code there is.
    """

    def __init__(self, filename: str, known: Known) -> None:
        super().__init__(filename)
        self._root = known.root.rstrip("/") + "/"
        self._lines = known.files.get(filename, Lines())
        self._text: str | None = None

    def relative_filename(self) -> str:
        """Return its path in the kernel's tree."""
        return self.filename.removeprefix(self._root)

    def source(self) -> str:
        """Return its text; a line that says so if it does not exist here."""
        if self._text is None:
            try:
                self._text = Path(self.filename).read_text(errors="replace")
            except OSError as error:
                self._text = f"/* {self.filename} cannot be read: {error.strerror} */\n"
        return self._text

    def lines(self) -> set[int]:
        """Return the lines that have code."""
        return set(self._lines.lines)

    def arcs(self) -> set[tuple[int, int]]:
        """Return the branches."""
        return set(self._lines.branches)

    def exit_counts(self) -> dict[int, int]:
        """Return the number of branches of each line."""
        counts: dict[int, int] = {}
        for line, _ in self._lines.branches:
            counts[line] = counts.get(line, 0) + 1
        return counts

    def missing_arc_description(
        self,
        start: int,
        end: int,
        executed_arcs: Iterable[tuple[int, int]] | None = None,  # noqa: ARG002 - coverage.py's signature
    ) -> str:
        """Return words for a branch that was not executed."""
        to = "code of another file" if end == EXIT else f"line {end}"
        return f"line {start} never jumped or fell through to {to}"

    def arc_description(self, start: int, end: int) -> str:  # noqa: ARG002 - coverage.py's signature
        """Return words for a branch."""
        return "to another file" if end == EXIT else f"to line {end}"

    def source_token_lines(self) -> Any:
        """Yield its lines in words with their kinds."""
        return source_text.tokens(self.source())

    def code_regions(self) -> list[CodeRegion]:
        """Return its functions."""
        return [
            CodeRegion("function", each.name, each.first, set(range(each.first, each.last + 1)))
            for each in source_text.functions(self.source())
        ]

    def code_region_kinds(self) -> list[tuple[str, str]]:
        """Return what its regions are."""
        return [("function", "functions")]


def coverage_init(registry: Any, options: Mapping[str, Any]) -> None:
    """Register the plugin; coverage.py calls it.

    Args:
        registry: coverage.py's.
        options: The section of this module in its configuration: `lines` is the file beside the data file.
    """
    registry.add_file_tracer(KernelSource(_read(Path(options.get("lines", f"kernel.coverage{_SUFFIX}")))))
