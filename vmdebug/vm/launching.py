"""Starts a VM from a spec. If that fails, nothing of it remains."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from vmdebug import network, process
from vmdebug.deadline import LAUNCH_SECONDS, Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, LaunchError, UsageError, VmdebugError
from vmdebug.guest import LaunchSpec, RunnerMachine
from vmdebug.process import Child, ProcessRef
from vmdebug.progress import Report, Step, silent
from vmdebug.spelling import option
from vmdebug.vm import (
    argv,
    children,
    companions,
    directory_use,
    planning,
    recorder,
    runtime_directory,
    segment,
    state,
)
from vmdebug.vm.argv import BOOT, InitialState
from vmdebug.vm.guardian import END_SECONDS, Guardian
from vmdebug.vm.machine import Vm
from vmdebug.vm.planning import Plan, Resources
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import State

if TYPE_CHECKING:
    from vmdebug.vm.qmp import Qmp

ANSWER = "QEMU to answer on QMP"

_PAUSE = 0.004
"""The longest pause between two attempts to connect; QEMU takes about 50 ms until it listens."""

_PORT_TAKEN = "Address already in use"
_NOT_FORWARDED = re.compile(r"host forwarding rule '(\w+):([\d.]+):(\d+)-")

_HINTS = (
    (r"Failed to get .* lock", "another VM uses that disk: end that VM, or use a copy of the disk"),
    (r"No space left on device", "free some space on the file system of the run directory or the disk"),
    (r"Could not access KVM|failed to initialize kvm", "use TCG: {accel}; `vmdebug doctor` checks KVM"),
    (
        r"access denied by acl file|failed to parse default acl file|bridge helper failed",
        "root has to allow it: `allow NAME` in /etc/qemu/bridge.conf, and chmod u+s qemu-bridge-helper",
    ),
    (r"CPU model 'host' requires", "choose another CPU model: -- -cpu max"),
    (
        r"at most one \w+ device is permitted",
        "vmdebug adds that device: remove it from the file of -readconfig, which vmdebug does not read",
    ),
    (r"annot set up guest memory|annot allocate memory", "give the guest less: {memory}"),
)
"""Messages in QEMU's log, with hints."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How a VM starts, if it does not boot.

    Args:
        initial: The memory and state that it starts with.
        fds: Descriptors that QEMU inherits.
        log: The first bytes of its console's log.
        resources: The host's resources for its spec; None: find them.
        clone_of: The VM that it is a clone of, or "".
        prewarmed: Whether it is prewarmed; see `vmdebug.vm.clones.prewarmed`.
    """

    initial: InitialState = BOOT
    fds: tuple[int, ...] = ()
    log: bytes = b""
    resources: Resources | None = None
    clone_of: str = ""
    prewarmed: bool = False


FROM_BOOT = Start()


class _Attempt(msgspec.Struct, frozen=True):
    """A launch in progress."""

    spec: LaunchSpec
    plan: Plan
    rundir: RunDir
    child: Child
    leader: ProcessRef


def launch(
    spec: LaunchSpec,
    *,
    bound: bool,
    report: Report = silent,
    timeout: float = LAUNCH_SECONDS,
    exact_name: bool = True,
    start: Start = FROM_BOOT,
) -> Vm:
    """Start a VM, and return once its QEMU answers on QMP.

    Args:
        spec: What to start.
        bound: Whether it ends with this process, even if that is killed.
        report: Called with each step that takes long.
        timeout: Seconds until QEMU has to answer.
        exact_name: Whether the name must not change; otherwise -2, -3, … is added to one that is taken.
        start: How it starts, if it does not boot.

    Raises:
        UsageError: the spec is wrong, or its name or port is taken.
        HostError: the machine lacks something: QEMU, KVM, space, a private runtime directory.
        LaunchError: QEMU ended; the detail has its command line and the end of its log.
        DeadlineError: QEMU does not answer. In all these cases nothing is left.
    """
    deadline = Deadline.after(timeout)
    found = start.resources or planning.resources(spec, report=report, deadline=deadline)
    guardian = Guardian.start()
    try:
        directory = directory_use.reserve(
            spec.name,
            exact=exact_name,
            guardian=guardian.ref,
            scratch=isinstance(spec.machine, RunnerMachine),
            prewarmed=start.prewarmed,
            deadline=deadline,
        )
        directories = (
            directory.path,
            *([directory.scratch] if isinstance(spec.machine, RunnerMachine) else ()),
        )
        for each in directories:
            guardian.remove(each)
        guardian.bound(directory.console_log)
        report(Step("starting QEMU", note=directory.name))
        if start.log:
            _begin_log(directory, start.log)
        named = msgspec.structs.replace(spec, name=directory.name)
        with (
            recorder.recording(named, found.record) as recording,
            companions.running(named, directory),
        ):
            with (
                segment.plugged(spec.nics, directory.name, deadline=deadline) as plugged,
                runtime_directory.kept_from_cleaning(*directories) as locks,
            ):
                named = msgspec.structs.replace(named, nics=plugged.nics)
                initial = msgspec.structs.replace(start.initial, connected=plugged.connections)
                how = planning.build(named, found, directory, initial=initial)
                attempt = _start(named, how, directory, guardian, (*start.fds, *locks, *plugged.fds))
            settled = _settle(attempt, bound=bound, deadline=deadline)
            if recording is not None:
                recording.begun(settled, directory, found.qemu, found.features.version)
            # Within the recording, which is deleted if this fails.
            started = msgspec.structs.replace(settled, clone_of=start.clone_of)
            state.write(directory.state, started)
    except BaseException:
        # The guardian kills the processes and removes the directories.
        guardian.end(Deadline.after(END_SECONDS))
        segment.settle(spec.nics)
        children.reap()
        runtime_directory.tidy()
        raise
    if bound:
        return Vm(directory, started, guardian=guardian)
    guardian.release()
    return Vm(directory, started)


def _begin_log(directory: RunDir, text: bytes) -> None:
    try:
        directory.console_log.write_bytes(text)
    except OSError as error:
        raise runtime_directory.host_error(f"write {directory.console_log}", error) from error


def _start(
    spec: LaunchSpec, how: Plan, directory: RunDir, guardian: Guardian, fds: Sequence[int]
) -> _Attempt:
    env = {**os.environ, **how.env}
    child = guardian.spawn(how.argv, env=env, log=directory.qemu_log, pass_fds=fds)
    children.adopt(child)
    leader = ProcessRef.of(child.pid)
    assert leader is not None  # noqa: S101 - a child that was not waited for has an entry in /proc
    return _Attempt(spec, how, directory, child, leader)


def _settle(attempt: _Attempt, *, bound: bool, deadline: Deadline) -> State:
    """Wait until QEMU answers, and return its state."""
    gdb, how = str(attempt.rundir.gdb), attempt.plan
    with _connected(attempt, deadline) as qmp:
        if attempt.spec.tcp is not None:
            gdb = f"127.0.0.1:{attempt.spec.tcp or _port(qmp)}"
        if isinstance(attempt.spec.machine, RunnerMachine):
            how = _as_decided(how, qmp)
        spec = _with_ports(attempt.spec, qmp)
    try:
        qemu = ProcessRef.of(int(attempt.rundir.pidfile.read_text()))
    except (OSError, ValueError):
        qemu = None  # QEMU has removed its pidfile, because it ended just after its answer
    if qemu is None:
        raise _failure(attempt)
    return State(
        spec=spec,
        qemu=qemu,
        leader=attempt.leader,
        accel=how.accel,
        reason=how.reason,
        argv=how.argv,
        env=how.env,
        owner=ProcessRef.me() if bound else None,
        gdb=gdb,
        started_at=time.time(),
        untraceable=how.untraceable,
    )


@contextlib.contextmanager
def _connected(attempt: _Attempt, deadline: Deadline) -> Iterator[Qmp]:
    """Connect to QEMU as soon as it listens.

    Raises:
        LaunchError: it ended instead.
        UsageError: the port for GDB is taken.
        DeadlineError: it did neither.
    """
    from vmdebug.vm import qmp  # noqa: PLC0415 - while QEMU starts

    try:
        with contextlib.ExitStack() as connection:
            for pause in deadline.pauses(ANSWER, longest=_PAUSE):
                with contextlib.suppress(qmp.NoListenerError):
                    found = connection.enter_context(
                        qmp.connect(attempt.rundir.control, process=attempt.leader, deadline=deadline)
                    )
                    break
                # QEMU makes the socket after it has read its options; this wait returns at once if it ends.
                if attempt.leader.wait(pause):
                    raise _failure(attempt)
            yield found
    except GuestDiedError as error:
        raise _failure(attempt) from error
    except DeadlineError as error:
        raise deadline.error(ANSWER, hint=error.hint, detail=_evidence(attempt)) from error


def _port(qmp: Qmp) -> int:
    """Return the port that QEMU chose for the gdbstub.

    The name that `query-chardev` gives is "disconnected:tcp:127.0.0.1:PORT,server=on".
    """
    for chardev in qmp.execute("query-chardev"):
        found = re.search(r":tcp:127\.0\.0\.1:(\d+)", chardev["filename"])
        if chardev["label"] == argv.GDB_CHARDEV and found:
            return int(found[1])
    raise LaunchError(
        "QEMU does not say which port its gdbstub has", hint=f"choose one: {option('tcp', 'PORT')}"
    )


def _with_ports(spec: LaunchSpec, qmp: Qmp) -> LaunchSpec:
    """Return the spec with the ports of the host that QEMU chose to forward."""
    wanted = [each for nic in spec.nics for each in nic.forwards]
    if all(each.host for each in wanted):
        return spec
    usernet = qmp.execute("human-monitor-command", {"command-line": "info usernet"})
    return msgspec.structs.replace(spec, nics=network.with_ports(spec.nics, network.read_forwards(usernet)))


def _as_decided(how: Plan, qmp: Qmp) -> Plan:
    """Return the plan with the accelerator that a runner's QEMU uses, which the script may have chosen."""
    real: argv.RealAccel = "kvm" if qmp.execute("query-kvm")["enabled"] else "tcg"
    if real == how.accel:
        return how
    return msgspec.structs.replace(how, accel=real, reason="the runner's own options decide")


def _failure(attempt: _Attempt) -> VmdebugError:
    """Return the error for a QEMU that ended before it answered."""
    attempt.child.wait()  # it has ended; reap it
    log = _log(attempt)
    port = attempt.spec.tcp
    if port and _PORT_TAKEN in log:
        return UsageError(
            f"port {port} on 127.0.0.1 is taken",
            hint=f"choose another port, or any free one: {option('tcp', 0)}; {_user_of(port)}",
            detail=_evidence(attempt),
        )
    if found := _NOT_FORWARDED.search(log):
        protocol, address, port = found[1], found[2], int(found[3])
        return UsageError(
            f"{option('forward')}: QEMU cannot listen on {protocol} port {port} of {address}: it is taken, or"
            " not for this user, or no address of this machine",
            hint=f"forward another port, or any free one: {option('forward', ':GUEST')}; {_user_of(port)}",
            detail=_evidence(attempt),
        )
    status = attempt.child.returncode
    what = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, log)), "")
    hint = hint.format(accel=option("accel", "tcg"), memory=option("memory"))
    return LaunchError(f"QEMU {what} before it answered", hint=hint, detail=_evidence(attempt))


def _user_of(port: int) -> str:
    return f"to see which process uses it: ss -lntup 'sport = :{port}'"


def _evidence(attempt: _Attempt) -> str:
    log = process.tail(_log(attempt)) or "(it wrote nothing)"
    return f"{attempt.plan.line()}\n{log}"


def _log(attempt: _Attempt) -> str:
    with contextlib.suppress(OSError):
        return attempt.rundir.qemu_log.read_text(errors="replace")
    return ""
