"""Runs built kselftests in a guest, one test at a time, so that kernel trouble belongs to the test that ran.

Where the guest has what the kernel's own runner needs, run_kselftest.sh runs each test. Otherwise its program
is run directly, with the same rules: the exit statuses of kselftest.h, and the timeout of `settings`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from vmdebug.channel.shell import Streams
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, UsageError
from vmdebug.ktests import selftests
from vmdebug.ktests.kselftest_output import TIMED_OUT, direct, from_runner
from vmdebug.ktests.kselftest_place import Asked, Place, needed_path, placed
from vmdebug.ktests.results import KernelTestPoint, KernelTestResults, group
from vmdebug.ktests.selftests import Collection
from vmdebug.progress import Report, Step
from vmdebug.vm import Vm
from vmdebug.vm.kernel_trouble import NewTrouble

RUNNING = "running kselftests"

DIED = "the guest died"
"""The directive of the test that ran then; its trouble says how."""

Ended = Callable[[str, KernelTestPoint], object]
"""Called with the name of the collection, or the suite, and a test of it that has ended."""

_GRACE_SECONDS = 15.0
"""How much longer than its timeout a test may take: the runner ends it first."""


def parse(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the tests that COLLECTION and COLLECTION:TEST name, by collection; [] for all of it.

    Raises:
        UsageError: a word names nothing.
    """
    found: dict[str, list[str]] = {}
    whole = set()
    for word in words:
        name, colon, test = word.rstrip("/").partition(":")
        if not name or (colon and not test):
            raise UsageError(
                f"{word!r} is no kselftest", hint="give COLLECTION or COLLECTION:TEST: timers:nanosleep"
            )
        tests = found.setdefault(name, [])
        if test:
            tests.append(test)
        else:
            whole.add(name)
    return {name: [] if name in whole else tests for name, tests in found.items()}


def select(
    collections: Sequence[Collection], wanted: dict[str, list[str]], *, test_timeout: float | None = None
) -> tuple[Asked, ...]:
    """Return the tests to run.

    Args:
        collections: The collections.
        wanted: The names of tests by collection; [] for all.
        test_timeout: Seconds for each test; 0 for no limit; None: as the collection's `settings` say.

    Raises:
        UsageError: a collection has no such test.
    """
    found = []
    for each in collections:
        for test in wanted[each.name]:
            if test not in each.tests:
                raise UsageError(
                    f"the collection {each.name} has no test {test!r}",
                    hint=f"it has: {', '.join(each.tests)}",
                )
        timeout = each.timeout if test_timeout is None else test_timeout
        found.append(Asked(each, tuple(wanted[each.name]) or each.tests, timeout))
    return tuple(found)


def collect(
    vm: Vm,
    words: Sequence[str],
    *,
    source: Path | None,
    test_timeout: float | None,
    ended: Ended,
    report: Report,
    deadline: Deadline,
) -> KernelTestResults:
    """Build kselftests, run them in a guest, and return their results.

    Args:
        vm: The guest.
        words: Each COLLECTION or COLLECTION:TEST.
        source: The kernel's source; None: that of the guest's kernel.
        test_timeout: See `select`.
        ended: Called with each test.
        report: Called with each long step.
        deadline: When to stop.

    Raises:
        UsageError: there is no such collection or test, or the source is unknown.
        HostError: this machine cannot build them.
        BuildError: make failed.
        VmError: the guest cannot run any of the tests.
        StateError: the guest does not run.
        DeadlineError: it took too long.
    """
    vm.check_running("kselftest")
    wanted = parse(words)
    kernel = vm.state.spec.kernel
    tree = selftests.source_of(kernel) if source is None else selftests.check_source(source)
    built = selftests.build(tree, [*wanted], kernel, report=report, deadline=deadline)
    asked = select(built, wanted, test_timeout=test_timeout)
    done = []
    with placed(vm, asked, report=report, deadline=deadline) as place:
        for name, point in run(vm, asked, place, report=report, deadline=deadline):
            ended(name, point)
            done.append((name, point))
    notes = (place.note,) if place.note else ()
    return KernelTestResults(framework="kselftest", points=grouped(done), notes=notes)


def run(
    vm: Vm,
    asked: Sequence[Asked],
    place: Place,
    *,
    report: Report,
    deadline: Deadline,
) -> Iterator[tuple[str, KernelTestPoint]]:
    """Run the tests, and yield each with the name of its collection as soon as it has ended.

    After the guest's death the test that ran has failed, and those after it are missing.

    Args:
        vm: The guest.
        asked: The tests.
        place: Where they are in the guest.
        report: Receives each test.
        deadline: When to stop.

    Raises:
        StateError: GDB has stopped the guest.
        DeadlineError: the tests took too long together.
    """
    total, number, died = sum(len(each.tests) for each in asked), 0, ""
    with NewTrouble(vm) as trouble:
        for each in asked:
            for test in each.tests:
                report(Step(RUNNING, done=number, total=total, note=f"{each.collection.name}: {test}"))
                number += 1
                if died:
                    yield each.collection.name, KernelTestPoint(name=test, status="missing", directive=died)
                    continue
                point, died = _one(vm, each, test, place, deadline)
                yield each.collection.name, msgspec.structs.replace(point, troubles=trouble.take())


def grouped(ended: Sequence[tuple[str, KernelTestPoint]]) -> tuple[KernelTestPoint, ...]:
    """Return the collections of tests that `run` has yielded."""
    names = dict.fromkeys(name for name, _ in ended)
    return tuple(group(name, tuple(point for of, point in ended if of == name)) for name in names)


def _one(vm: Vm, asked: Asked, test: str, place: Place, deadline: Deadline) -> tuple[KernelTestPoint, str]:
    """Run a test; return its point, and why the next ones do not run, or ""."""
    collection, seconds = asked.collection, asked.timeout
    interpreter = collection.interpreter(test)
    absent = needed_path(interpreter) if interpreter else ""
    if absent in place.missing:
        skipped = KernelTestPoint(name=test, status="skipped", directive=f"SKIP the guest has no {absent}")
        return skipped, ""
    output, began = bytearray(), time.monotonic()
    grace = _GRACE_SECONDS if place.runner else 0.0
    until = deadline if not seconds else deadline.at_most(seconds + grace)
    command = (
        runner_line(collection, test, place, seconds)
        if place.runner
        else direct_line(collection, test, place)
    )
    died, status = "", None
    try:
        status = vm.shell.run(command, streams=Streams(stdout=output.extend), deadline=until).status
    except DeadlineError:
        if deadline.passed:
            raise
        status = TIMED_OUT
    except GuestDiedError:
        died = DIED
    lines = output.decode(errors="replace").replace("\0", "").splitlines()
    took = round(time.monotonic() - began, 3)
    if place.runner:
        point = from_runner(test, lines, seconds)
    else:
        xfails = b"xfail_rc" in (collection.directory / "kselftest/runner.sh").read_bytes()
        point = direct(test, lines, status, seconds, xfails=xfails)
    if died:
        point = msgspec.structs.replace(point, status="failed", directive=died)
    return msgspec.structs.replace(point, duration=took), f"not run: {died}" if died else ""


def runner_line(collection: Collection, test: str, place: Place, seconds: float) -> str:
    """Return the shell line that runs a test by the kernel's runner."""
    top = f"{place.directory}/{collection.directory.name}"
    # The runner reads the timeout there, and the last line counts.
    settings = shlex.quote(f"{top}/{collection.name}/settings")
    where = shlex.quote(top)
    # The runner opens /dev/stdout, which works for a pipe.
    name = shlex.quote(f"{collection.name}:{test}")
    return f"echo timeout={seconds:g} >>{settings}; cd {where} && ./run_kselftest.sh -t {name} 2>&1 | cat"


def direct_line(collection: Collection, test: str, place: Place) -> str:
    """Return the shell line that runs a test's program."""
    where = shlex.quote(f"{place.directory}/{collection.directory.name}/{collection.name}")
    by = "" if collection.executable(test) else shlex.join(collection.interpreter(test)) + " "
    return f"cd {where} && exec {by}{shlex.quote(f'./{test}')} 2>&1"
