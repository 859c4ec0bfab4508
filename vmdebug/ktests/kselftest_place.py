"""Brings kselftests into a guest: what the guest lacks for them, and where they are."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdebug.channel.files.put import put
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError, VmError
from vmdebug.ktests import selftests
from vmdebug.ktests.selftests import Collection
from vmdebug.progress import Report
from vmdebug.vm import Vm

_SHORT_SECONDS = 60.0
"""How long a short command in the guest may take."""

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
