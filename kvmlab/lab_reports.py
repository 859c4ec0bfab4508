"""A pytest plugin for the lab, where a run takes hours: what became of each test is told at once.

It prints why a test failed, and a line for each test, which `kvmlab/run` reads: "lab: passed SECONDS s NODE".
The tests that are named in the file `passed` of the current directory, one node a line, are left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest


class _Reports:
    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print through the terminal reporter, because pytest captures other output."""
        terminal = self._plugins.get_plugin("terminalreporter")
        if terminal is None:
            return  # a worker of pytest-xdist, which sends its reports to the main process
        node = report.nodeid
        self._seconds[node] = self._seconds.get(node, 0.0) + report.duration
        if report.failed:
            self._failed.add(node)
            terminal.write_line(f"\n{report.longreprtext}")
        if report.when == "teardown":
            word = "failed" if node in self._failed else "passed"
            terminal.write_line(f"lab: {word} {self._seconds.pop(node):.0f} s {node}")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin."""
    config.pluginmanager.register(_Reports(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has passed."""
    file = Path("passed")
    passed = set(file.read_text().splitlines()) if file.exists() else set()
    left_out = [item for item in items if item.nodeid in passed]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in passed]
