"""A pytest plugin that prints each failure at once: in the lab a run takes hours."""

from __future__ import annotations

from typing import Any

import pytest


class _Shown:
    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print why a test failed."""
        if report.failed:
            self._terminal.write_line(f"\n{report.longreprtext}")


def pytest_configure(config: pytest.Config) -> None:
    """Print beside pytest's own report, which captures other output."""
    config.pluginmanager.register(_Shown(config.pluginmanager.get_plugin("terminalreporter")))
