"""Runs KUnit suites in a booted guest, and reads their results from debugfs.

See Documentation/dev-tools/kunit. A suite runs when its module is loaded, or at boot if it is built in. Since
Linux 6.8 it runs again when something is written to its file `run` in debugfs. The kernel's log has the same
results, complete and with time stamps: debugfs keeps 2048 bytes of each test in Linux 6.6 and earlier.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vmdebug.channel.files.put import put
from vmdebug.channel.log import kept
from vmdebug.channel.log.trouble import find as find_trouble
from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, StateError, UsageError, VmError
from vmdebug.ktests import ktap, suite_modules
from vmdebug.ktests.attribution import attributed
from vmdebug.ktests.results import KernelTestPoint, KernelTestResults
from vmdebug.ktests.suite_modules import SuiteModule
from vmdebug.progress import Report, Step
from vmdebug.sources.configuration import dotconfig
from vmdebug.sources.kernels import modules
from vmdebug.spelling import nearest
from vmdebug.vm import Vm
from vmdebug.vm.kernel_trouble import NewTrouble

RUNNING = "running KUnit suites"

DEBUGFS = "/sys/kernel/debug/kunit"

Ended = Callable[[KernelTestPoint], object]
"""Called with each suite."""

_NEEDED = ("CONFIG_DEBUG_FS", "CONFIG_KUNIT", "CONFIG_KUNIT_DEBUGFS")

_LIST = f"""
[ -d /sys/kernel/debug/kunit ] || mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
[ -d {DEBUGFS} ] || modprobe kunit 2>/dev/null
[ -d {DEBUGFS} ] || exit 9
cd {DEBUGFS} && for suite in *; do
	[ ! -e "$suite/results" ] || if [ -e "$suite/run" ]; then echo "run $suite"; else echo "read $suite"; fi
done
"""


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite that can be run or read.

    Args:
        name: Its name.
        module: The module that has it; None if it is built in, or its module is unknown.
        loaded: Whether debugfs has results of it.
        again: Whether it can be run again without loading its module.
    """

    name: str
    module: SuiteModule | None = None
    loaded: bool = False
    again: bool = False


def known(vm: Vm, *, deadline: Deadline) -> tuple[Suite, ...]:
    """Return the suites in the guest's debugfs and those in the modules of its kernel, sorted by name.

    Raises:
        VmError: the kernel has no KUnit with debugfs.
        VmdebugError: the guest's shell does not answer.
    """
    loaded = _loaded(vm, deadline)
    found = {name: Suite(name, loaded=True, again=again) for name, again in loaded.items()}
    for module in suite_modules.every(vm.state.spec.kernel.modules):
        for name in module.suites or (module.name,):
            found[name] = Suite(name, module, loaded=name in loaded, again=loaded.get(name, False))
    return tuple(found[name] for name in sorted(found))


def collect(
    vm: Vm, words: Sequence[str | os.PathLike[str]], *, ended: Ended, report: Report, deadline: Deadline
) -> KernelTestResults:
    """Run suites, and return their results.

    Args:
        vm: The guest.
        words: Each the name of a suite, the name of a module, or a module's file, FILE.ko. None: all suites
            that debugfs has.
        ended: Called with each suite.
        report: Called with each long step.
        deadline: When to stop.

    Raises:
        UsageError: there is no such suite or module.
        VmError: the kernel has no KUnit with debugfs, or a module cannot be loaded.
        StateError: the guest does not run.
        DeadlineError: it took too long.
    """
    vm.check_running("kunit")
    suites = known(vm, deadline=deadline)
    jobs = _jobs([os.fspath(word) for word in words], suites)
    run = _Run(vm, deadline)
    with NewTrouble(vm) as trouble:
        for number, job in enumerate(jobs):
            report(Step(RUNNING, done=number, total=len(jobs), note=job.word))
            points = attributed(run.points(job), trouble.take(), all_ours=True)
            for point in points:
                ended(point)
            run.done += points
            if run.died:
                break
        run.done += [
            KernelTestPoint(name=job.word, status="missing", directive=f"not run: {run.died}")
            for job in jobs[len(run.ran) :]
        ]
    return KernelTestResults(framework="kunit", points=tuple(run.done), notes=tuple(run.notes))


def boot(vm: Vm, words: Sequence[str], *, report: Report, deadline: Deadline) -> KernelTestResults:
    """Return the results of the suites that have run since the guest booted, from the kernel's log.

    Wait until the guest has booted or died. If its shell does not answer, the console's log is read.

    Args:
        vm: The guest; it may have died.
        words: Names of suites; none: all.
        report: Called with each long step.
        deadline: When to stop waiting for the guest's shell.

    Raises:
        UsageError: the log has no such suite.
        VmError: no suite has run.
        DeadlineError: the guest did not boot.
    """
    report(Step("waiting for the guest to boot"))
    text = _log(vm, deadline)
    found = ktap.read_log(text)
    points = {point.name: point for point in found}
    if not points:
        raise VmError(
            "the kernel's log has no KUnit results",
            hint="suites that are built in run at boot: CONFIG_KUNIT=y, and the parameter kunit.enable=1",
        )
    for word in words:
        if word not in points:
            raise UsageError(
                f"the kernel's log has no results of {word!r}", hint=f"it has: {', '.join(points)}"
            )
    whole = attributed(tuple(points.values()), find_trouble(text), all_ours=False)
    chosen = tuple(point for point in whole if not words or point.name in words)
    return KernelTestResults(framework="kunit", points=chosen)


@dataclass(frozen=True, slots=True)
class _Job:
    """A word of the user: suites that one action runs.

    Args:
        word: The word.
        suites: The names of the suites; empty: those that appear in debugfs.
        module: The module to load; None: the suites are in debugfs.
        again: Whether to write to `run`.
    """

    word: str
    suites: tuple[str, ...] = ()
    module: SuiteModule | None = None
    again: bool = False


def _jobs(words: Sequence[str], suites: Sequence[Suite]) -> tuple[_Job, ...]:
    """Return what to do for the words.

    Raises:
        UsageError: there is no such suite or module.
    """
    if not words:
        loaded = [suite for suite in suites if suite.loaded]
        if not loaded:
            names = ", ".join(suite.name for suite in suites)
            raise UsageError(
                "no KUnit suite has run yet: name one",
                hint=f"the kernel's modules have: {names}"
                if names
                else "build suites as modules, or into it",
            )
        return tuple(_job(suite) for suite in loaded)
    return tuple(_job_of(word, suites) for word in words)


def _job(suite: Suite) -> _Job:
    module = None if suite.again else suite.module
    return _Job(suite.name, (suite.name,), module, again=suite.again)


def _job_of(word: str, suites: Sequence[Suite]) -> _Job:
    if word.endswith(".ko"):
        return _Job(word, (), _own_module(Path(word)))
    by_name = {suite.name: suite for suite in suites}
    if word in by_name:
        return _job(by_name[word])
    for suite in suites:
        if suite.module is not None and word.replace("-", "_") == suite.module.name:
            return _Job(word, suite.module.suites, suite.module)
    near = nearest(word, [*by_name, *(each.module.name for each in suites if each.module is not None)])
    raise UsageError(
        f"there is no KUnit suite or module {word!r}",
        hint=f"did you mean {near!r}?" if near else "--list prints the suites; a module's file ends in .ko",
    )


def _own_module(file: Path) -> SuiteModule:
    if not file.is_file():
        raise UsageError(f"{file} does not exist", hint="give the file of a module with KUnit suites")
    found = suite_modules.look(file)
    if found is None:
        raise UsageError(f"{file} has no KUnit suites", hint="declare them with kunit_test_suite(…)")
    return found


@dataclass(slots=True)
class _Run:
    """The jobs of one run.

    Args:
        vm: The guest.
        deadline: When to stop.
        done: The suites that have run.
        ran: The jobs that have run.
        notes: Notes for the user.
        died: That the guest died; "" while it lives.
    """

    vm: Vm
    deadline: Deadline
    done: list[KernelTestPoint] = field(default_factory=list)
    ran: list[_Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    died: str = ""

    def points(self, job: _Job) -> tuple[KernelTestPoint, ...]:
        """Run a job, and return its suites."""
        self.ran.append(job)
        log = self.vm.rundir.console_log
        before = kept.read(log)
        began = before.dropped + len(before.data)
        try:
            return self._points(job)
        except GuestDiedError:
            self.died = "the guest died"
        now = kept.read(log)
        if found := ktap.read_log(now.data[max(0, began - now.dropped) :].decode(errors="replace")):
            return found
        return (KernelTestPoint(name=job.word, status="failed", directive=self.died),)

    def _points(self, job: _Job) -> tuple[KernelTestPoint, ...]:
        if job.module is None:
            if job.again:
                for name in job.suites:
                    self._shell(f"echo 1 >{shlex.quote(f'{DEBUGFS}/{name}/run')}")
            else:
                self.notes.append(
                    f"{job.word}: these results are from when it ran last; this kernel cannot repeat it"
                )
            return self._read(job.suites)
        was_loaded = self._is_loaded(job.module)
        if was_loaded and not self._unload(job.module):
            self.notes.append(f"{job.word}: its module is in use; these results are of its last run")
            return self._read(job.suites)
        present = _loaded(self.vm, self.deadline)
        self._load(job.module)
        try:
            now = _loaded(self.vm, self.deadline)
            names = [name for name in job.suites if name in now] or [
                name for name in now if name not in present
            ]
            if not names:
                raise VmError(
                    f"the module {job.module.name} has brought no KUnit suite",
                    hint="the parameter kunit.enable=0 or kunit.filter_glob may keep it from running",
                )
            return self._read(names)
        finally:
            if not was_loaded and not self.died:
                self._unload(job.module)

    def _is_loaded(self, module: SuiteModule) -> bool:
        return self.vm.exec(["test", "-d", f"/sys/module/{module.name}"], timeout=self._left()).status == 0

    def _unload(self, module: SuiteModule) -> bool:
        """Unload a module, and return whether that worked."""
        return self.vm.exec(["rmmod", module.name], timeout=self._left()).status == 0

    def _load(self, module: SuiteModule) -> None:
        """Load a module with those that it needs; the guest's own modprobe first.

        Raises:
            VmError: it cannot be loaded.
        """
        kernel_modules = self.vm.state.spec.kernel.modules
        own = kernel_modules is None or not module.file.is_relative_to(kernel_modules)
        name = shlex.quote(module.name)
        if not own and self.vm.exec(f"modprobe {name} 2>/dev/null", timeout=self._left()).status == 0:
            return
        for file in (*suite_modules.needed(module.file, kernel_modules), module.file):
            self._insert(file)

    def _insert(self, file: Path) -> None:
        name = suite_modules.module_name(file)
        path = f"/tmp/{name}.ko"  # noqa: S108 - in the guest
        put(self.vm.shell, [modules.content(file)], path, report=lambda _step: None, deadline=self.deadline)
        line = f"[ -d /sys/module/{name} ] || insmod {path}; status=$?; rm -f {path}; exit $status"
        done = self.vm.exec(line, timeout=self._left())
        if done.status != 0:
            log = self.vm.exec("dmesg | tail -n 5", timeout=self._left()).stdout
            raise VmError(
                f"the guest cannot load {file}: {done.stderr.strip() or f'status {done.status}'}",
                hint="build it against the tree of the kernel that runs",
                detail=log.rstrip(),
            )

    def _read(self, names: Sequence[str]) -> tuple[KernelTestPoint, ...]:
        """Return the results of suites from debugfs, with times and what debugfs has cut off from the log."""
        logged = {point.name: point for point in ktap.read_log(self._shell("dmesg"))}
        found = []
        for name in names:
            text = self._shell(f"cat {shlex.quote(f'{DEBUGFS}/{name}/results')}")
            point = next((each for each in ktap.read(text.splitlines()) if each.name == name), None)
            if point is None:
                raise VmError(f"{DEBUGFS}/{name}/results has no result of the suite", detail=text)
            found.append(with_log(point, logged.get(name)))
        return tuple(found)

    def _shell(self, command: str) -> str:
        return self.vm.exec(command, timeout=self._left(), check=True).stdout

    def _left(self) -> float:
        return self.deadline.left("KUnit suites to run")


def with_log(point: KernelTestPoint, logged: KernelTestPoint | None) -> KernelTestPoint:
    """Return a point of debugfs with the times that the kernel's log has.

    Args:
        point: From debugfs.
        logged: The same point, from the log; None if the log no longer has it. If debugfs lacks points of it,
            it is returned.
    """
    if logged is None or logged.status != point.status:
        return point
    if [each.name for each in point.points] != [each.name for each in logged.points]:
        return logged if len(logged.points) > len(point.points) else point
    inner = tuple(with_log(each, other) for each, other in zip(point.points, logged.points, strict=True))
    return msgspec.structs.replace(point, points=inner, ended=logged.ended, duration=logged.duration)


def _loaded(vm: Vm, deadline: Deadline) -> dict[str, bool]:
    """Return the suites in debugfs, and whether each can be run again."""
    done = vm.exec(_LIST, timeout=deadline.left("the guest to list its KUnit suites"))
    if done.status != 0:
        raise _no_kunit(vm)
    found = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
    return {name: how == "run" for how, name in found}


def _no_kunit(vm: Vm) -> VmError:
    configuration = dotconfig.of(vm.state.spec.kernel)
    lacking = (
        [name for name in _NEEDED if configuration.options.get(name, "n") == "n"]
        if configuration is not None
        else list(_NEEDED)
    )
    return VmError(
        f"the guest's kernel has no {DEBUGFS}",
        hint=f"build it with {', '.join(f'{name}=y' for name in lacking or _NEEDED)}",
    )


def _log(vm: Vm, deadline: Deadline) -> str:
    """Return the kernel's log: dmesg(1) of the guest, or the console's log if it cannot run."""
    try:
        text = vm.exec("dmesg", timeout=deadline.left("the guest to boot"), check=True).stdout
        if ktap.has_documents(text):
            return text
    except (GuestDiedError, StateError, VmError):
        pass  # the console's log tells what ran until then
    return kept.read(vm.rundir.console_log).data.decode(errors="replace")
