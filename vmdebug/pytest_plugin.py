"""A fresh booted guest for every test that asks for one: vmdebug's face to pytest.

All that stands here is cheap: a run that uses none of it pays for two dozen options and no import.
What it does is in `vmdebug.plugin`, imported when the first test with a guest is collected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vmdebug.channel.serial.console import Console
    from vmdebug.debugger.gdb import Gdb
    from vmdebug.plugin.hooks import Run
    from vmdebug.plugin.lease import Lease
    from vmdebug.session import DebugSession
    from vmdebug.vm.machine import Vm

_FIXTURE = "vmdebug_guest"

_DESTINATIONS = (
    "vmdebug_guest",
    "vmdebug_kernel",
    "vmdebug_accel",
    "vmdebug_artifacts",
    "vmdebug_keep",
    "vmdebug_dump",
    "vmdebug_timeout",
    "vmdebug_boot_timeout",
)

_RUN = pytest.StashKey["Run"]()

_MARKER = (
    "vmdebug(guest=…, kernel=…, halt=…, append=…, kaslr=…, memory=…, cpus=…, allow=[KIND, …], timeout=…):"
    " the guest of this test. KIND is trouble on the console that does not fail it: panic, oops, bug, warn,"
    " lockdep, kasan, hung_task, rcu_stall, …"
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
        "What tests run on, as `vmdebug start` takes it; repeated, each test runs on each.",
        metavar="GUEST",
        action="append",
    )
    option(
        "vmdebug-kernel",
        "linelist",
        "Run it on this kernel instead of its own; repeated, each test runs on each.",
        metavar="IMAGE|TREE",
        action="append",
    )
    option("vmdebug-accel", "string", "Which accelerator.", metavar="auto|kvm|tcg")
    option(
        "vmdebug-artifacts",
        "string",
        "Write each failure's report into a directory below this one.",
        metavar="DIR",
    )
    option(
        "vmdebug-keep",
        "bool",
        "Leave a failing test's VM running, for `vmdebug attach`.",
        action="store_true",
    )
    option(
        "vmdebug-dump",
        "bool",
        "Write a failing guest's memory as a vmcore, into its artifacts.",
        action="store_true",
    )
    option(
        "vmdebug-timeout",
        "string",
        "Seconds that each of a test's setup, call and teardown may take; 0 is for ever. (300)",
        metavar="S",
    )
    option(
        "vmdebug-boot-timeout", "string", "Seconds until a guest's shell has to answer. (180)", metavar="S"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and refuse options that cannot be right."""
    config.addinivalue_line("markers", _MARKER)
    if any(config.getoption(dest) for dest in _DESTINATIONS):
        from vmdebug.plugin import settings  # noqa: PLC0415 - a run without them must not pay

        settings.read(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each guest and kernel that it is to run on."""
    if _FIXTURE not in metafunc.fixturenames:
        return
    from vmdebug.errors import UsageError  # noqa: PLC0415 - as below

    try:
        targets = _run(metafunc.config).targets(metafunc.definition)
    except (UsageError, pytest.UsageError):
        return  # told once all is collected: raised here, it would be an error of the test's module
    if len(targets) > 1:
        metafunc.parametrize(_FIXTURE, list(targets.values()), ids=list(targets), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse what cannot be right, before anything is started."""
    if hasattr(config, "workerinput"):
        return  # pytest-xdist takes an error here for a crash; each test that it is about fails by it
    for item in items:
        marks = list(item.iter_markers("vmdebug"))
        if marks:
            _check(item, marks)
        if _FIXTURE in getattr(item, "fixturenames", ()):
            _run(config)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which VMs were left, where tests could not have the quickest guests, and what xdist's ran on."""
    headers: dict[str, None] = {}
    told: dict[str, None] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            facts = getattr(report, "vmdebug", {})
            headers |= dict.fromkeys(facts.get("header", ()))
            if how := facts.get("slow"):
                told.setdefault(how)
            if kept := facts.get("kept"):
                told.setdefault(f"kept for {report.nodeid}: vmdebug attach {kept}")
    if headers or told:
        terminalreporter.section("vmdebug")
        for line in (*headers, *told):
            terminalreporter.line(line)


@pytest.fixture
def vmdebug_guest(request: pytest.FixtureRequest) -> Lease:
    """The test's guest as the plugin has it; the other fixtures stand on this one."""
    return _run(request.config).lease(request)


@pytest.fixture
def session(vmdebug_guest: Lease) -> DebugSession:
    """A `vmdebug.DebugSession` on a fresh guest at its shell; its GDB is attached when it is touched."""
    return vmdebug_guest.session


@pytest.fixture
def vm(vmdebug_guest: Lease) -> Vm:
    """A fresh VM, booted to its shell: `vm.exec("uname -r").stdout`, `vm.qmp("query-status")`."""
    return vmdebug_guest.session.vm


@pytest.fixture
def console(vmdebug_guest: Lease) -> Console:
    """The serial console of the test's fresh guest: `sendline`, `expect`."""
    return vmdebug_guest.session.console


@pytest.fixture
def gdb(vmdebug_guest: Lease) -> Gdb:
    """GDB, attached to the test's fresh guest, which it holds stopped."""
    return vmdebug_guest.attach()


@pytest.fixture
def halted_session(vmdebug_guest: Lease) -> DebugSession:
    """A `vmdebug.DebugSession` on a guest stopped at the reset vector, GDB attached."""
    vmdebug_guest.attach(halted=True)
    return vmdebug_guest.session


def _run(config: pytest.Config) -> Run:
    run = config.stash.get(_RUN, None)
    if run is None:
        from vmdebug.plugin.hooks import NAME, Run  # noqa: PLC0415 - a run without a guest must not pay

        run = config.stash[_RUN] = Run(config)
        config.pluginmanager.register(run, NAME)
    return run


def _check(item: pytest.Item, marks: list[pytest.Mark]) -> None:
    from vmdebug.errors import UsageError  # noqa: PLC0415 - a run without a marker must not pay
    from vmdebug.plugin import settings  # noqa: PLC0415 - as above

    try:
        settings.wish(marks)
    except UsageError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None
