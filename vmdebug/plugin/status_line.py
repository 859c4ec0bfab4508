"""Shows a long step on the terminal after the line that pytest is writing, and removes it again."""

from __future__ import annotations

import contextlib

import pytest

from vmdebug.progress import Step

_SAVE, _RESTORE, _CLEAR = "\0337", "\0338", "\033[K"
"""DECSC, DECRC, EL: save and restore the cursor, erase to the end of the line."""

_LEAST_COLUMNS = 12


class StatusLine:
    """A `vmdebug.progress.Report` on pytest's terminal; silent if pytest does not write to a terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._shown = False

    def __call__(self, step: Step) -> None:
        """Show a step."""
        amount = f" {step.done}/{step.total}" if step.total is not None else ""
        note = f" ({step.note})" if step.note else ""
        self._write(f" {step.what}{amount}{note} …")

    def clear(self) -> None:
        """Remove the step that is shown."""
        if self._shown:
            self._write("")
            self._shown = False

    def _write(self, text: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or not terminal.isatty or not terminal.hasmarkup:
            return
        # Use pytest's own terminal writer, because output of tests is captured.
        writer = terminal._tw  # noqa: SLF001 - nothing public tells the column of the cursor
        room = writer.fullwidth - writer.width_of_current_line - 1
        if room < _LEAST_COLUMNS:
            return
        file = writer._file  # noqa: SLF001 - `write` would count columns that are removed again
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
            file.write(f"{_SAVE}{_CLEAR}{text[:room]}{_RESTORE}")
            file.flush()
        self._shown = True
