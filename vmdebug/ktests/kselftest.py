"""Runs built kselftests in a guest, one test at a time, so that kernel trouble belongs to the test that ran.

Where the guest has what the kernel's own runner needs, run_kselftest.sh runs each test. Otherwise its program
is run directly, with the same rules: the exit statuses of kselftest.h, and the timeout of `settings`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmdebug.channel.files.put import put
from vmdebug.channel.shell import Streams
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, UsageError, VmdebugError, VmError
from vmdebug.ktests import ktap, selftests
from vmdebug.ktests.results import KernelTestPoint, KernelTestResults, Status, group
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

_SHORT_SECONDS = 60.0
"""How long a short command in the guest may take."""

_LINES = 400
"""How many of its last lines a test's diagnostics keep."""

_SKIP, _XFAIL, _TIMED_OUT = 4, 2, 124
"""Exit statuses: KSFT_SKIP and KSFT_XFAIL of kselftest.h, and that of timeout(1)."""

_RESULT = re.compile(r"^(?:not )?ok \d+ selftests: ")

_PROBE = """
for tool in realpath dirname basename cat cut grep head sed tr uniq wc; do
	command -v $tool >/dev/null || echo "tool $tool"
done
timeout=/usr/bin/timeout
[ -e /dev/stdout ] || echo "tool /dev/stdout"
[ ! -x $timeout ] || $timeout --foreground 9 true 2>/dev/null || echo "tool timeout --foreground"
for path in {paths}; do [ -e "$path" ] || command -v "$path" >/dev/null || echo "path $path"; done
mkdir -p /var/tmp 2>/dev/null
echo "directory $(mktemp -d /var/tmp/kselftest.XXXXXX || mktemp -d /tmp/kselftest.XXXXXX)"
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to run.

    Args:
        collection: The collection.
        tests: Its tests to run.
        timeout: Seconds for each test; 0 for no limit.
    """

    collection: Collection
    tests: tuple[str, ...]
    timeout: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tests are in the guest.

    Args:
        directory: The directory that the collections are copied to.
        runner: Whether run_kselftest.sh works there.
        missing: The interpreters that the guest does not have.
        note: Why the kernel's runner is not used, and what was copied, for the user.
    """

    directory: str
    runner: bool
    missing: frozenset[str]
    note: str = ""


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


@contextlib.contextmanager
def placed(vm: Vm, asked: Sequence[Asked], *, report: Report, deadline: Deadline) -> Iterator[Place]:
    """Copy the collections into the guest for the block, with a C library if the guest has none.

    Raises:
        VmError: the guest lacks the interpreter of each of the tests.
        VmdebugError: the guest's shell does not answer, or its disk is full.
    """
    interpreters = _interpreters(asked)
    programs = [each.collection.file(test) for each in asked for test in each.tests]
    libraries = selftests.libraries(programs, deadline=deadline)
    loader = [str(path) for path in libraries if path.name.startswith("ld")]
    paths = shlex.join({*interpreters.values(), *loader})
    said = _output(vm, _PROBE.replace("{paths}", paths), deadline)
    facts = [line.partition(" ")[::2] for line in said.splitlines()]
    lacking = {text for kind, text in facts if kind == "path"}
    tools = [text for kind, text in facts if kind == "tool"]
    directory = next((text for kind, text in facts if kind == "directory"), "")
    notes = []
    try:
        if lacking & set(loader):
            _bring(vm, libraries, report, deadline)
            notes.append("the guest has no C library: this machine's was copied into it")
        missing = frozenset(lacking - set(loader))
        _check_interpreters(asked, interpreters, missing)
        if tools:
            notes.append(f"the tests are run one by one: the kernel's runner needs {', '.join(tools)}")
        for each in asked:
            put(vm.shell, [each.collection.directory], f"{directory}/", report=report, deadline=deadline)
        yield Place(directory, runner=not tools, missing=missing, note="; ".join(notes))
    finally:
        with contextlib.suppress(VmdebugError):  # the guest has died, or GDB has stopped it
            vm.exec(["rm", "-rf", directory], timeout=_SHORT_SECONDS)


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
        status = _TIMED_OUT
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


def from_runner(test: str, lines: Sequence[str], seconds: float) -> KernelTestPoint:
    """Return the point of a test from the output of the kernel's runner.

    Args:
        test: Its name.
        lines: The output: the result of the test, and before it what the test printed, each line after "# ".
        seconds: Its timeout, for a test that the runner did not end.
    """
    at = next((at for at, line in enumerate(lines) if _RESULT.match(line)), None)
    inner = [line[2:] if line.startswith("# ") else line.removeprefix("#") for line in lines[:at]]
    inner = [line for line in inner if not line.startswith("selftests: ")]
    begun = next((at for at, line in enumerate(inner) if line.startswith("1..")), -1) + 1  # the runner's plan
    if at is None:
        return direct(test, inner[begun:], _TIMED_OUT, seconds)
    outer = ktap.read([lines[at]])[0]
    return _with_output(test, inner[begun:], outer.status, outer.directive)


def direct(
    test: str, lines: Sequence[str], status: int | None, seconds: float, *, xfails: bool = False
) -> KernelTestPoint:
    """Return the point of a test whose program was run directly, by the rules of runner.sh.

    Args:
        test: Its name.
        lines: What it printed.
        status: Its exit status; None if that is unknown.
        seconds: Its timeout.
        xfails: Whether the runner of this kernel takes status 2 for an expected failure.
    """
    match status:
        case 0:
            return _with_output(test, lines, "passed", "")
        case 4:
            return _with_output(test, lines, "skipped", "SKIP")
        case 2 if xfails:
            return _with_output(test, lines, "xfailed", "XFAIL")
        case 124:
            return _with_output(test, lines, "failed", f"TIMEOUT {seconds:g} seconds")
        case _:
            return _with_output(test, lines, "failed", "" if status is None else f"exit={status}")


def _with_output(test: str, lines: Sequence[str], status: Status, directive: str) -> KernelTestPoint:
    reader = ktap.Reader()
    for line in lines:
        reader.line(line)
    # If the program says that it passed, its points do not have to match its plan.
    points = reader.points(judged=status in ("passed", "skipped"))
    said = reader.rest if points else tuple(lines[-_LINES:])
    if directive == "SKIP":
        reason = reader.skip.partition(" ")[2] or next((line for line in reversed(said) if line.strip()), "")
        directive = f"SKIP {reason.removeprefix('# ').removeprefix('SKIP').strip()}".strip()
    return KernelTestPoint(name=test, status=status, directive=directive, diagnostics=said, points=points)


def needed_path(interpreter: Sequence[str]) -> str:
    """Return the program that a `#!` line needs: "bash" of "/usr/bin/env bash"."""
    if Path(interpreter[0]).name == "env" and len(interpreter) > 1:
        return next((word for word in interpreter[1:] if not word.startswith("-")), interpreter[0])
    return interpreter[0]


def _interpreters(asked: Sequence[Asked]) -> dict[str, str]:
    """Return the interpreter that each script needs, by the script's collection and name."""
    return {
        f"{each.collection.name}:{test}": needed_path(words)
        for each in asked
        for test in each.tests
        if (words := each.collection.interpreter(test))
    }


def _check_interpreters(
    asked: Sequence[Asked], interpreters: dict[str, str], missing: frozenset[str]
) -> None:
    """Check that the guest can run at least one of the tests."""
    tests = [f"{each.collection.name}:{test}" for each in asked for test in each.tests]
    if all(interpreters.get(test) in missing for test in tests):
        raise VmError(
            f"the guest cannot run {', '.join(tests)}: it has no {', '.join(sorted(missing))}",
            hint="start it with a root that has it: vmdebug start GUEST --root debian:bookworm",
        )


def _bring(vm: Vm, libraries: Sequence[Path], report: Report, deadline: Deadline) -> None:
    """Copy the C library into a guest that has none, to the same paths."""
    for directory in dict.fromkeys(library.parent for library in libraries):
        here = [library for library in libraries if library.parent == directory]
        _output(vm, f"mkdir -p {shlex.quote(str(directory))}", deadline)
        put(vm.shell, here, f"{directory}/", report=report, deadline=deadline)


def _output(vm: Vm, command: str, deadline: Deadline) -> str:
    left = deadline.left("a command in the guest")
    return vm.exec(command, timeout=left, check=True).stdout
