"""Builds collections of kselftests from a kernel's source, in the cache; the source stays as it is.

See Documentation/dev-tools/kselftest.rst. The tests are linked as the kernel's Makefiles link them,
dynamically: with `-static` some do not link, such as valid-adjtimex of `timers` in Linux 6.1.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdebug import arch, cache, process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.guest import Kernel
from vmdebug.progress import Report, Step
from vmdebug.sources import kbuild
from vmdebug.sources.kernels import tree
from vmdebug.spelling import nearest

WHERE = Path("tools/testing/selftests")
"""The directory of the kselftests in a kernel's source."""

TIMEOUT_SECONDS = 45.0
"""How long a test may take unless its collection's `settings` say otherwise; see runner.sh."""

_BUILDING = "building kselftests"
_NEEDED = 0.5e9
_TARGETS = re.compile(r"^TARGETS \+= *(\S+)", re.MULTILINE)
_TIMEOUT = re.compile(r"^timeout=(\d+)$", re.MULTILINE)
_TOOLS = {"make": "make", "gcc": "gcc", "rsync": "rsync"}


@dataclass(frozen=True, slots=True)
class Collection:
    """A built collection.

    Args:
        name: Its directory below tools/testing/selftests: "timers", "net/forwarding".
        directory: What to copy into the guest: the collection in its directory, and the runner's scripts.
        tests: The names of its tests, in the order of the runner.
        timeout: Seconds for each test, by its `settings`; 0 for no limit.
    """

    name: str
    directory: Path
    tests: tuple[str, ...]
    timeout: float

    def file(self, test: str) -> Path:
        """Return the file of a test."""
        return self.directory / self.name / test

    def interpreter(self, test: str) -> tuple[str, ...]:
        """Return the interpreter in the first line of a script, and its arguments; () for a program."""
        if not self.file(test).is_file():
            return ()
        with self.file(test).open("rb") as file:
            first = file.readline(256).decode(errors="replace")
        return tuple(first[2:].split()) if first.startswith("#!") else ()

    def executable(self, test: str) -> bool:
        """Whether the file of a test is executable; a script that is not needs its interpreter."""
        return bool(self.file(test).stat().st_mode & stat.S_IXUSR)


def source_of(kernel: Kernel) -> Path:
    """Return the source that a kernel was built from.

    Raises:
        UsageError: it is unknown, or has no kselftests.
    """
    found = None if kernel.source is None else tree.source(kernel.source)
    if found is None:
        raise UsageError(
            f"the source of the guest's kernel is unknown: {kernel.origin}",
            hint="give the kernel's source: --source TREE",
        )
    return check_source(found)


def check_source(source: Path) -> Path:
    """Return a source with kselftests, as an absolute path.

    Raises:
        UsageError: it has none.
    """
    if not (source / WHERE / "lib.mk").is_file():
        raise UsageError(
            f"{source} has no kselftests: there is no {WHERE}/lib.mk",
            hint="--source takes a kernel's source, the directory with its top Makefile",
        )
    return source.resolve()


def known(source: Path) -> tuple[str, ...]:
    """Return the names of the collections in a source, sorted."""
    text = (source / WHERE / "Makefile").read_text(errors="replace")
    return tuple(sorted(name for name in set(_TARGETS.findall(text)) if _exists(source, name)))


def check_names(source: Path, names: Sequence[str]) -> None:
    """Check that collections exist.

    Raises:
        UsageError: one does not.
    """
    for name in names:
        if not _exists(source, name):
            near = nearest(name, known(source))
            raise UsageError(
                f"there is no kselftest collection {name!r} in {source / WHERE}",
                hint=f"did you mean {near!r}?" if near else "--list prints the collections",
            )


def _exists(source: Path, name: str) -> bool:
    inside = name and not name.startswith("/") and ".." not in Path(name).parts
    return bool(inside) and (source / WHERE / name / "Makefile").is_file()


def build(
    source: Path, names: Sequence[str], kernel: Kernel, *, report: Report, deadline: Deadline
) -> tuple[Collection, ...]:
    """Build collections; what has been built before and has not changed is not built again.

    Args:
        source: The kernel's source.
        names: The collections.
        kernel: The guest's kernel. Tests with modules are built against its build tree.
        report: Receives each collection.
        deadline: When to stop.

    Raises:
        HostError: a program is missing, or the guest has another architecture than this machine.
        UsageError: there is no such collection.
        BuildError: make failed.
        DeadlineError: it took too long.
    """
    check_names(source, names)
    _check_machine(kernel)
    identity = f"{source} {kernel.arch}"
    output = cache.directory("kselftest") / hashlib.sha256(identity.encode()).hexdigest()[:16]
    with cache.lock(output, _BUILDING, report, deadline):
        cache.check_space(output, _NEEDED)
        with cache.writing(output, _NEEDED):
            output.mkdir(parents=True, exist_ok=True)
        report(Step(_BUILDING, note="the kernel's headers"))
        _make(headers_argv(source, output), output, "the kernel's headers", deadline)
        found = []
        for number, name in enumerate(names):
            report(Step(_BUILDING, done=number, total=len(names), note=name))
            found.append(_built(source, output, name, kernel, deadline))
        return tuple(found)


def headers_argv(source: Path, output: Path) -> tuple[str, ...]:
    """Return the command that makes the headers for user space; also from a source that was built in."""
    return ("make", "-C", str(source), f"O={output}", f"-j{kbuild.jobs()}", "headers")


def install_argv(source: Path, output: Path, name: str, install: Path, kernel: Kernel) -> tuple[str, ...]:
    """Return the command that builds and installs a collection."""
    modules = kernel.image.parent if kernel.vmlinux is None else kernel.vmlinux.parent
    return (
        *("make", "-C", str(source / WHERE), f"O={output}", f"-j{kbuild.jobs()}"),
        *(f"TARGETS={name}", "SKIP_TARGETS=", "FORCE_TARGETS=1"),
        # By default some Makefiles build modules for this machine's own kernel.
        *(f"KDIR={modules}", f"KSFT_INSTALL_PATH={install}", "install"),
    )


def _built(source: Path, output: Path, name: str, kernel: Kernel, deadline: Deadline) -> Collection:
    install = output / "install" / name.replace("/", "-")
    _make(install_argv(source, output, name, install, kernel), output, f"the collection {name}", deadline)
    lines = (install / "kselftest-list.txt").read_text().split()
    tests = tuple(line.partition(":")[2] for line in lines if line.startswith(f"{name}:"))
    if not tests:
        raise UsageError(
            f"the collection {name} has no tests on {kernel.arch}", hint="--list prints the collections"
        )
    settings = install / name / "settings"
    said = _TIMEOUT.findall(settings.read_text()) if settings.is_file() else []
    return Collection(name, install, tests, float(said[-1]) if said else TIMEOUT_SECONDS)


def _make(argv: Sequence[str], output: Path, what: str, deadline: Deadline) -> None:
    done = process.run(argv, env=kbuild.clean_environment(), deadline=deadline, check=False)
    if done.status == 0:
        return
    cache.refuse_full(done.stderr, output, _NEEDED)
    errors = [line for line in done.stderr.splitlines() if re.search(r"error|No such file|not found", line)]
    raise BuildError(
        f"{what} could not be built: make ended with status {done.status}",
        hint=errors[0].strip() if errors else "see the output of make below",
        detail=f"{process.shell_line(argv)}\n{process.tail(done.stderr)}",
    )


def _check_machine(kernel: Kernel) -> None:
    ours = arch.native().name
    if kernel.arch != ours:
        raise HostError(
            f"this machine's compiler makes programs for {ours}, and the guest is {kernel.arch}",
            hint="run the kselftests on a machine of that architecture",
        )
    for program, package in _TOOLS.items():
        process.find(program, package=package)


def libraries(programs: Sequence[Path], *, deadline: Deadline) -> tuple[Path, ...]:
    """Return the dynamic loader and the libraries that programs need, as ld.so(8) finds them on this machine.

    Args:
        programs: Programs that were built here.
        deadline: When to stop.
    """
    found: dict[Path, None] = {}
    env = {**os.environ, "LC_ALL": "C"}
    for program in programs:
        # Fails for a script, and for a static program.
        done = process.run(["ldd", program], env=env, deadline=deadline, check=False)
        paths = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE)
        found |= dict.fromkeys(Path(path) for path in paths)
    return tuple(found)
