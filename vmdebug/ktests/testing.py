"""`kselftest` and `kunit` of a session."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.ktests.results import KernelTestResults
from vmdebug.progress import Report, silent
from vmdebug.vm import Vm

TEST_SECONDS = 3600.0
"""How long kernel tests may take together, with building them; each kselftest has a timeout of its own."""


class KernelTests(ABC):
    """The kernel's own tests, in a session's guest."""

    vm: Vm

    tested: Callable[[], contextlib.AbstractContextManager[None]]
    """Entered while kernel tests run: kernel trouble then belongs to a test point."""

    @abstractmethod
    def _needs_running(self, call: str) -> None:
        """Raise StateError if GDB has stopped the guest."""

    def kselftest(
        self,
        *tests: str,
        source: os.PathLike[str] | str | None = None,
        test_timeout: float | None = None,
        timeout: float = TEST_SECONDS,
        report: Report = silent,
    ) -> KernelTestResults:
        """Build kselftests in the cache, copy them into the guest, and run them.

        Tests that fail raise nothing; see the results. A guest without a C library gets this machine's.

        Args:
            *tests: Each COLLECTION or COLLECTION:TEST: "timers", "net/forwarding", "timers:nanosleep".
            source: The kernel's source; None: the one that the guest's kernel was built from.
            test_timeout: Seconds for each test; 0 for no limit; None: as the collection's `settings` say, or
                45.
            timeout: Seconds for all of it.
            report: Called with each long step.

        Returns:
            Collections, their tests, and what these printed as KTAP.

        Raises:
            UsageError: there is no such test, or the kernel's source is unknown.
            HostError: this machine lacks make, gcc or rsync, or is of another architecture.
            BuildError: make failed.
            VmError: the guest lacks the interpreter of each of the tests.
            StateError: the guest does not run.
            DeadlineError: it took too long.
        """
        from vmdebug.ktests import kselftest  # noqa: PLC0415 - only imported when needed

        self._needs_running("kselftest")
        with self.tested():
            return kselftest.collect(
                self.vm,
                tests,
                source=None if source is None else Path(source),
                test_timeout=test_timeout,
                ended=lambda _name, _point: None,
                report=report,
                deadline=Deadline.after(timeout),
            )

    def kunit(
        self,
        *suites: os.PathLike[str] | str,
        boot: bool = False,
        timeout: float = TEST_SECONDS,
        report: Report = silent,
    ) -> KernelTestResults:
        """Run KUnit suites, and read their results from debugfs.

        A module with suites is loaded, and unloaded again if it was not loaded before. Tests that fail raise
        nothing; see the results.

        Args:
            *suites: Each the name of a suite, the name of a module with suites, or a module's file, FILE.ko;
                none: all suites that debugfs has.
            boot: Whether to read the results of what has run since boot instead, from the kernel's log.
            timeout: Seconds for all of it.
            report: Called with each long step.

        Returns:
            Suites and their tests; a parameterized test has points of its own.

        Raises:
            UsageError: there is no such suite or module.
            VmError: the kernel has no KUnit with debugfs, a module cannot be loaded, or nothing has run.
            StateError: the guest does not run.
            DeadlineError: it took too long.
        """
        from vmdebug.ktests import kunit  # noqa: PLC0415 - only imported when needed

        deadline = Deadline.after(timeout)
        if boot:
            return kunit.boot(self.vm, [os.fspath(each) for each in suites], report=report, deadline=deadline)
        self._needs_running("kunit")
        with self.tested():
            return kunit.collect(self.vm, suites, ended=lambda _point: None, report=report, deadline=deadline)
