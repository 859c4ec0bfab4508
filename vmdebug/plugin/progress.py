"""What takes long, said on a terminal behind the line that pytest is writing, and taken away again."""

from __future__ import annotations

import contextlib

import pytest

from vmdebug.progress import Step

_SAVE, _RESTORE, _CLEAR = "\0337", "\0338", "\033[K"
"""DECSC, DECRC, EL: the cursor is put back to where pytest left it."""

_LEAST_COLUMNS = 12


class Progress:
    """A `vmdebug.progress.Report` to the terminal that pytest writes to; silent where that is none."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._shown = False

    def __call__(self, step: Step) -> None:
        """Show a step."""
        amount = f" {step.done}/{step.total}" if step.total is not None else ""
        note = f" ({step.note})" if step.note else ""
        self._write(f" {step.what}{amount}{note} …")

    def clear(self) -> None:
        """Take away what is shown."""
        if self._shown:
            self._write("")
            self._shown = False

    def _write(self, text: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or not terminal.isatty or not terminal.hasmarkup:
            return
        # pytest's own handle of the terminal: what tests print is captured, and this is not of a test.
        writer = terminal._tw  # noqa: SLF001 - nothing public tells where in the line it is
        room = writer.fullwidth - writer.width_of_current_line - 1
        if room < _LEAST_COLUMNS:
            return
        file = writer._file  # noqa: SLF001 - its own `write` counts columns that are taken back
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
            file.write(f"{_SAVE}{_CLEAR}{text[:room]}{_RESTORE}")
            file.flush()
        self._shown = True
