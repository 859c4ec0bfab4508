"""The tools for what runs in the guest: commands, traces, the kernel's log, decoded texts."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Annotated

from pydantic import Field

from vmdebug import kimage
from vmdebug.channel.shell import ExecResult, Job
from vmdebug.collecting import By, Choice
from vmdebug.deadline import BOOT_SECONDS, Deadline
from vmdebug.debugger import decode as decoding
from vmdebug.debugger import text_kernels
from vmdebug.errors import MismatchError, StateError, UsageError
from vmdebug.faces.mcp import cancelling, described, results
from vmdebug.faces.mcp.calls import Call
from vmdebug.faces.mcp.machines import AgentSession, Held
from vmdebug.faces.mcp.tools_vm import Lines, VmName
from vmdebug.trace import probe
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Wanted
from vmdebug.trace.trace import Trace

SLICE_SECONDS = 0.2
"""How long a command is waited for before the next look for hits, or for a cancellation."""

OUTPUT_CHARACTERS = 60_000
"""Characters of a command's output in a result; the middle of a longer one is left out."""

DECODE_SECONDS = 120.0
"""How long it may take to find source lines."""

HITS = 1000
"""The largest number of hits in one result."""

LOOKED_AT = 100_000
"""The largest number of hits among which a trace looks for those of a task, or with errors."""

_NUMBERS = itertools.count(1)


def exec_(
    call: Call,
    command: Annotated[str, Field(description="A line for the guest's shell.")] = "",
    vm: VmName = None,
    timeout: Annotated[
        float, Field(description="Seconds for the rest of a boot, and for the command.", gt=0, le=86400)
    ] = 60.0,
    job: Annotated[
        int | None, Field(description="Wait for this command, which a breakpoint had stopped, instead.")
    ] = None,
) -> results.Command:
    """Run a command in the guest as root. If a breakpoint stops the guest, return that stop and a `job`.

    Then look around, use `continue`, and call `exec` with `job` for the rest of the command.
    """
    if bool(command) == (job is not None):
        raise UsageError("exec takes either a command or a job", hint="give one of them")
    with call.machines.using(vm, call.tool) as held:
        deadline = Deadline.after(timeout)
        number = _begun(call, held, command, deadline) if job is None else job
        if number not in held.jobs:
            there = ", ".join(map(str, held.jobs)) or "none"
            raise UsageError(f"there is no job {number}", hint=f"there are: {there}")
        return _ended(call, held, number, deadline)


def _begun(call: Call, held: Held, command: str, deadline: Deadline) -> int:
    number = next(_NUMBERS)
    with _cancellable(call, held.session) as session:
        held.jobs[number] = session.exec(command, timeout=deadline.left("the guest's shell"), wait=False)
    return number


@contextlib.contextmanager
def _cancellable(call: Call, session: AgentSession) -> Iterator[AgentSession]:
    """Let the block's wait for the guest's shell end when the call is cancelled."""
    session.need_running(call.tool)
    with (
        cancelling.cancellable(session.vm.shell, call.check) as shell,
        call.interrupted_by(shell.cancel, "waiting for the guest's shell"),
    ):
        yield session


def _ended(
    call: Call, held: Held, number: int, deadline: Deadline, meanwhile: Callable[[], object] = lambda: None
) -> results.Command:
    """Wait for the end of a command, or for a stop of the guest."""
    job, session = held.jobs[number], held.session
    call.step = "waiting for the command to end"
    session.need_running(call.tool)
    try:
        while not (deadline.passed or job.wait(timeout=SLICE_SECONDS)):
            _check_cancelled(call, job)
            meanwhile()
        done = job.result_by(deadline)
    except StateError:
        gdb = session.attached
        if call.cancelled.is_set() or gdb is None or not gdb.stopped:
            held.jobs.pop(number)
            raise
        stop = described.stop(gdb.wait_stop(), gdb)
        return results.Command(finished=False, stop=stop, job=number)
    except BaseException:
        held.jobs.pop(number)
        raise
    held.jobs.pop(number)
    return _finished(done)


def _check_cancelled(call: Call, job: Job) -> None:
    if call.cancelled.is_set():
        job.cancel()
        call.check()


def _finished(done: ExecResult) -> results.Command:
    return results.Command(
        finished=True, status=done.status, stdout=_shortened(done.stdout), stderr=_shortened(done.stderr)
    )


def _shortened(text: str) -> str:
    text = text.encode(errors="surrogateescape").decode(errors="replace")
    left_out = len(text) - OUTPUT_CHARACTERS
    if left_out <= 0:
        return text
    half = OUTPUT_CHARACTERS // 2
    note = f"[… {left_out} characters are left out; redirect the output to a file …]"
    return f"{text[:half]}\n{note}\n{text[-half:]}"


def trace(
    call: Call,
    places: Annotated[
        list[str],
        Field(
            description="SYMBOL[:EXPR,…], a pattern of functions (vfs_*), FILE:LINE[:EXPR,…], or a tracepoint"
            " GROUP:EVENT:[FIELD,…]. do_sys_openat2:filename traces its argument; a char * is a text.",
            min_length=1,
        ),
    ],
    command: Annotated[
        str, Field(description="Run this in the guest meanwhile; the trace ends with it.")
    ] = "",
    vm: VmName = None,
    when: Annotated[str, Field(description="Only calls at which this C expression is true.")] = "",
    count: Annotated[int, Field(description="Number of hits after which it ends.", ge=1, le=HITS)] = 100,
    timeout: Annotated[float, Field(description="Seconds after which it ends.", gt=0, le=86400)] = 10.0,
    by: Annotated[
        By,
        Field(description="Who collects; auto takes what does not stop the guest, if it can."),
    ] = "auto",
    *,
    returns: Annotated[bool, Field(description="Also return values, and how long calls took.")] = False,
    backtrace: Annotated[bool, Field(description="Also the stack of each call.")] = False,
    errors_only: Annotated[
        bool, Field(description="Only calls that returned an error such as -ENOENT, also as a pointer.")
    ] = False,
    task: Annotated[str, Field(description="Only calls by tasks with this name (comm).")] = "",
    count_only: Annotated[bool, Field(description="Only the number of calls of each place.")] = False,
) -> results.Trace:
    """Record the calls of kernel functions, with arguments and return values, while the guest runs.

    The time before the trace begins is not counted. GDB collects what nothing else can, and is slow.
    """
    wanted = probe.wanted(
        probe.parse(places),
        when=when,
        count=LOOKED_AT if errors_only or task else None if count_only else count,
        ret=returns or errors_only,
        backtrace=backtrace,
        count_only=count_only,
    )

    def is_wanted(hit: Hit) -> bool:
        of_task = not task or (hit.task is not None and hit.task.comm == task)
        return of_task and not (errors_only and not described.error(hit.ret))

    with call.machines.using(vm, call.tool) as held:
        call.step = "preparing the trace"
        session = held.session
        if command and session.attached is None:
            with _cancellable(call, session):
                session.exec("true", timeout=max(timeout, BOOT_SECONDS), check=True)
        found = _collector(held, wanted, by)
        hits = Trace(found.collector, found.wanted, reason=found.reason)
        deadline = Deadline.after(timeout)
        done = None
        call.step = "tracing"
        with hits:
            if command:
                number = _begun(call, held, command, deadline)
                done = _ended(call, held, number, deadline, meanwhile=hits.take)
            else:
                _collect(call, hits, deadline)
        call.check()
        ended = hits.ended or ("the number of hits" if hits.full else "the command" if done else "the time")
        return results.Trace(
            collector=hits.collector,
            hits=tuple(map(described.hit, itertools.islice(filter(is_wanted, hits), count))),
            counts=hits.counts,
            ended=ended,
            reason=hits.reason,
            notes=(*session.notes, *hits.notes),
            command=done,
        )


def _collector(held: Held, wanted: Wanted, by: By) -> Choice:
    """Return the collector; if it is a GDB that has to be attached, a guest that ran runs on."""
    session = held.session
    ran = session.attached is None and session.status == "running"
    found = session.collector(wanted, by)
    if ran and session.attached is not None and session.attached.stopped:
        session.attached.resume()
    return found


def _collect(call: Call, hits: Trace, deadline: Deadline) -> None:
    while not (call.cancelled.wait(min(SLICE_SECONDS, deadline.remaining)) or deadline.passed):
        hits.take()
        if hits.full or hits.ended:
            return


def dmesg(call: Call, vm: VmName = None, lines: Lines = 100) -> results.Text:
    """Return the end of the kernel's log, read from memory: also of a guest that hangs or has panicked.

    GDB stops a running guest for a moment.
    """
    with call.machines.using(vm, call.tool) as held:
        session = held.session
        if session.status == "halted":
            raise StateError(
                f"{session.name} is halted at the reset vector: the kernel has no log yet", hint="`continue`"
            )
        with session.examined() as gdb:
            text = gdb.dmesg(limit=lines)
        return results.Text(text, notes=session.notes)


def decode(
    call: Call,
    text: Annotated[str, Field(description="Any text with kernel traces: an oops, a log, a mail.")],
    vm: VmName = None,
    *,
    force: Annotated[bool, Field(description="Decode also a text of another build.")] = False,
) -> results.Text:
    """Add source lines to the kernel traces in a text, by the symbols of a VM's kernel."""
    kernel = call.machines.find(vm).session.vm.state.spec.kernel
    if kernel.vmlinux is None:
        raise UsageError("that VM has no vmlinux to decode by", hint="a person starts it with one")
    said = text_kernels.said(text)
    ours = kimage.read_vmlinux(kernel.vmlinux)
    if text_kernels.is_other(said, ours) and not force:
        why = next(filter(None, (text_kernels.difference(each, ours) for each in said)), "")
        raise MismatchError(f"the text is of another kernel: {why}", hint="force=true decodes it anyway")
    notes: list[str] = []
    call.step = "finding source lines"
    decoded = decoding.decode(text, kernel, Deadline.after(DECODE_SECONDS), tell=notes.append)
    return results.Text(decoded, notes=tuple(notes))
