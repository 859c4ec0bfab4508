"""The pytest plugin: a freshly booted guest for every test that uses one of its fixtures.

A pytest run without guests imports only this module, which defines options. The rest is in `vmdebug.plugin`,
and is imported when pytest collects the first test with a guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vmdebug.plugin import FIXTURE

if TYPE_CHECKING:
    from vmdebug.channel.serial.console import Console
    from vmdebug.debugger.gdb import Gdb
    from vmdebug.plugin.fixture_guests import FixtureGuests
    from vmdebug.plugin.hooks import Run
    from vmdebug.plugin.kernel_tests import KernelTestReporter
    from vmdebug.session import DebugSession
    from vmdebug.vm.machine import Vm

_DESTINATIONS = (
    "vmdebug_guest",
    "vmdebug_kernel",
    "vmdebug_accel",
    "vmdebug_artifacts",
    "vmdebug_keep",
    "vmdebug_dump",
    "vmdebug_record",
    "vmdebug_timeout",
    "vmdebug_boot_timeout",
    "vmdebug_cov",
    "vmdebug_cov_report",
    "vmdebug_cov_diff",
    "vmdebug_cov_file",
    "vmdebug_cov_source",
)

_RUN = pytest.StashKey["Run"]()

_MARKER = (
    "vmdebug(guest=…, kernel=…, halt=…, append=…, kaslr=…, memory=…, cpus=…, initrd=…, modules=…, module=…,"
    " load_modules=…, root=…, share=…, net=…, forward=…, sessions=N, record=…, allow=[KIND, …], kmemleak=…,"
    " timeout=…):"
    " the guest of this test. KIND is a kind of kernel message that does not fail the test: panic, oops, bug,"
    " warn, lockdep, kasan, hung_task, rcu_stall, …"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, each with an ini option of the same name."""
    group = parser.getgroup("vmdebug", "guests under the debugger (vmdebug)")

    def option(name: str, ini: Any, text: str, **how: Any) -> None:
        dest = name.replace("-", "_")
        group.addoption(f"--{name}", dest=dest, help=text, **how)
        parser.addini(dest, f"As --{name}.", type=ini, default=None if ini != "linelist" else [])

    option(
        "vmdebug-guest",
        "linelist",
        "Guest that tests run on, as `vmdebug start` takes it. Repeatable: each test runs on each guest.",
        metavar="GUEST",
        action="append",
    )
    option(
        "vmdebug-kernel",
        "linelist",
        "Kernel to boot instead of the guest's own. Repeatable: each test runs on each kernel.",
        metavar="IMAGE|TREE",
        action="append",
    )
    option("vmdebug-accel", "string", "Accelerator to use.", metavar="auto|kvm|tcg")
    option(
        "vmdebug-artifacts",
        "string",
        "Write the report of each failed test into DIR, in a directory for each test.",
        metavar="DIR",
    )
    option(
        "vmdebug-keep",
        "bool",
        "Leave the VM of a failed test running, so that you can use `vmdebug attach`.",
        action="store_true",
    )
    option(
        "vmdebug-dump",
        "bool",
        "Also write a vmcore of a failed test's guest to its artifacts.",
        action="store_true",
    )
    option(
        "vmdebug-record",
        "string",
        "Record each test's guest, and keep the recordings of failed tests, among their artifacts if any.",
        metavar="on-failure",
    )
    option(
        "vmdebug-timeout",
        "string",
        "Time limit for each of a test's setup, call and teardown, in seconds; 0 for no limit. (300)",
        metavar="S",
    )
    _add_coverage(group)
    option(
        "vmdebug-boot-timeout", "string", "Seconds in which a guest's shell must answer. (180)", metavar="S"
    )


def _add_coverage(group: pytest.OptionGroup) -> None:
    """Options of coverage; they have no ini option, because a run with coverage is slower."""
    group.addoption(
        "--vmdebug-cov",
        dest="vmdebug_cov",
        metavar="PATH",
        nargs="?",
        const="",
        action="append",
        help="Record which lines and branches of the kernel each test executes: of all its files, or of"
        " --vmdebug-cov=PATH, a file or directory of its tree or a module. Repeatable.",
    )
    group.addoption(
        "--vmdebug-cov-report",
        dest="vmdebug_cov_report",
        metavar="FORMAT[:PATH]",
        action="append",
        help="Report of the coverage: term, html, lcov, xml (Cobertura) or json. Repeatable.",
    )
    group.addoption(
        "--vmdebug-cov-diff",
        dest="vmdebug_cov_diff",
        metavar="REV",
        help="Print the lines of the kernel's tree that changed since REV and that no test reached.",
    )
    group.addoption(
        "--vmdebug-cov-file", dest="vmdebug_cov_file", metavar="FILE", help="Data file. (kernel.coverage)"
    )
    group.addoption(
        "--vmdebug-cov-source",
        dest="vmdebug_cov_source",
        metavar="DIR",
        help="The kernel's source, if it is not where its debugging information says.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse invalid options."""
    config.addinivalue_line("markers", _MARKER)
    if any(config.getoption(dest) for dest in _DESTINATIONS):
        from vmdebug.plugin import settings  # noqa: PLC0415 - a run without these options needs none of it

        found = settings.read(config)
        if found.coverage is not None and not hasattr(config, "workerinput"):
            from vmdebug.plugin import coverage  # noqa: PLC0415 - as above

            coverage.clean(found.coverage)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Give each point of kernel tests an element of its own in JUnit's XML."""
    if getattr(session.config.option, "xmlpath", None):
        from _pytest.junitxml import xml_key  # noqa: PLC0415 - pytest has no public name for it

        xml = session.config.stash.get(xml_key, None)
        if xml is not None:
            from vmdebug.plugin.kernel_tests import separate_in_junit  # noqa: PLC0415 - only for JUnit

            separate_in_junit(xml)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each guest and kernel that it runs on."""
    if FIXTURE not in metafunc.fixturenames:
        return
    from vmdebug.errors import UsageError  # noqa: PLC0415 - a run without a guest needs none of it

    try:
        targets = _run(metafunc.config).targets(metafunc.definition)
    except (UsageError, pytest.UsageError):
        return  # `pytest_collection_modifyitems` reports it; here it would be an error of the whole module
    if len(targets) > 1:
        metafunc.parametrize(FIXTURE, list(targets.values()), ids=list(targets), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse invalid markers before anything starts."""
    if hasattr(config, "workerinput"):
        return  # pytest-xdist takes an error here for a crash; instead, each such test fails with the error
    for item in items:
        marks = list(item.iter_markers("vmdebug"))
        if marks:
            _check(item, marks)
        if FIXTURE in getattr(item, "fixturenames", ()):
            _run(config)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the VMs that were kept, why guests were slow to start, and what xdist's workers ran on."""
    headers: dict[str, None] = {}
    notes: dict[str, None] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            facts = getattr(report, "vmdebug", {})
            headers |= dict.fromkeys(facts.get("header", ()))
            if how := facts.get("slow"):
                notes.setdefault(how)
            for kept in facts.get("kept", "").split():
                notes.setdefault(f"kept for {report.nodeid}: vmdebug attach {kept}")
    if headers or notes:
        terminalreporter.section("vmdebug")
        for line in (*headers, *notes):
            terminalreporter.line(line)
    # A worker of pytest-xdist writes its part; the controller combines them.
    worker = hasattr(terminalreporter.config, "workerinput")
    if terminalreporter.config.getoption("vmdebug_cov") is not None and not worker:
        from vmdebug.plugin import coverage, settings  # noqa: PLC0415 - as above

        if (found := settings.coverage(terminalreporter.config)) is not None:
            coverage.summary(terminalreporter, found)


@pytest.fixture
def vmdebug_guest(request: pytest.FixtureRequest) -> FixtureGuests:
    """The test's guests; vmdebug's other fixtures are based on this one."""
    return _run(request.config).guest(request)


@pytest.fixture
def session(vmdebug_guest: FixtureGuests) -> DebugSession:
    """A `vmdebug.DebugSession` on a fresh guest at its shell; the first use of `session.gdb` attaches GDB."""
    return vmdebug_guest.session


@pytest.fixture
def sessions(vmdebug_guest: FixtureGuests) -> tuple[DebugSession, ...]:
    """Sessions on fresh guests on a network segment of their own: two, or the marker's `sessions=N`."""
    return vmdebug_guest.sessions


@pytest.fixture
def vm(vmdebug_guest: FixtureGuests) -> Vm:
    """A fresh VM, booted to its shell: `vm.exec("uname -r").stdout`, `vm.qmp("query-status")`."""
    return vmdebug_guest.session.vm


@pytest.fixture
def console(vmdebug_guest: FixtureGuests) -> Console:
    """The serial console of the test's fresh guest: `sendline`, `expect`."""
    return vmdebug_guest.session.console


@pytest.fixture
def gdb(vmdebug_guest: FixtureGuests) -> Gdb:
    """GDB, attached to the test's fresh guest, which it has stopped."""
    return vmdebug_guest.attach()


@pytest.fixture
def ktests(request: pytest.FixtureRequest, vmdebug_guest: FixtureGuests) -> KernelTestReporter:
    """Reports kernel tests on the test's guest, each point as a subtest: `ktests.kunit("list-test")`."""
    from vmdebug.plugin.kernel_tests import KernelTestReporter  # noqa: PLC0415 - as above

    return KernelTestReporter(request, vmdebug_guest.first)


@pytest.fixture
def halted_session(vmdebug_guest: FixtureGuests) -> DebugSession:
    """A `vmdebug.DebugSession` on a guest halted at the reset vector, with GDB attached."""
    vmdebug_guest.attach(halted=True)
    return vmdebug_guest.session


def _run(config: pytest.Config) -> Run:
    run = config.stash.get(_RUN, None)
    if run is None:
        from vmdebug.plugin.hooks import NAME, Run  # noqa: PLC0415 - as above

        run = config.stash[_RUN] = Run(config)
        config.pluginmanager.register(run, NAME)
    return run


def _check(item: pytest.Item, marks: list[pytest.Mark]) -> None:
    from vmdebug.errors import UsageError  # noqa: PLC0415 - as above
    from vmdebug.plugin import markers  # noqa: PLC0415 - as above

    try:
        markers.read(marks)
    except UsageError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None
