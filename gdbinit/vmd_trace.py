"""Traces: breakpoints that record each hit inside GDB and let the guest run on.

A hit sends nothing to the host, which fetches the recorded hits in batches. A return value is recorded when
the function exits. GDB cannot insert a breakpoint while the guest runs, or in `stop()`, so each exit of the
function has one from the start. See "Manipulating breakpoints using Python" in GDB's manual.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import time
from collections.abc import Callable
from typing import Any

import gdb
import vmd_arch
import vmd_debuginfo
import vmd_frame
import vmd_function_exits
import vmd_history
import vmd_patching
import vmd_tcg_double_hit
import vmd_trace_variables
from vmd_expression import Expression
from vmd_hit_context import Here, HitContext
from vmd_registers import WORD, Registers, narrowed, word
from vmd_trace_variables import Variables

_MAX_ERRNO = 4095
"""Of include/linux/err.h: numbers from its negative on are error codes, not addresses."""

Result = Callable[[int], int]

DEPTH = 64
"""Maximum number of frames of a backtrace that a hit records."""


class Trace:
    """One trace and its hits that the host has not fetched, ordered by return if it records returns.

    Args:
        wanted: The request of the host; see `vmdebug/trace/probe.py`.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        self._when: str = wanted["when"]
        self._condition = vmd_trace_variables.comparable(self._when)
        self._count: int | None = wanted["count"]
        self._backtrace: bool = wanted["backtrace"]
        self._hits: list[Any] = []
        self._forgotten = 0
        self._seen = 0
        self._why = ""
        self._lost: list[str] = []
        self._open: dict[int, list[Any]] = {}
        self._context: HitContext | None = None
        self._arch = vmd_arch.current()
        self._double_hits = vmd_tcg_double_hit.DoubleHits()
        self._probes: list[Probe] = []
        self._breakpoints: list[gdb.Breakpoint] = []
        self.notes: list[str] = []
        if vmd_debuginfo.missing():
            why = vmd_debuginfo.lacking("struct task_struct")
            self.notes.append(f"hits have no task and no guest time: {why}")
        texts = [text for _, args in wanted["probes"] for text in args]
        self._of_args, self._of_condition = Variables(texts), Variables([self._when])
        self._texts = [*texts, self._when]
        try:
            for index, (where, args) in enumerate(wanted["probes"]):
                self._set_probe(index, where, args)
            self._check()
            for probe in self._probes if wanted["ret"] else ():
                probe.returns = probe.enabled and self._set_exits(probe.where)
        except BaseException:
            self.end()
            raise
        replayed = vmd_history.clock()
        self._now = replayed or time.perf_counter
        self.started = 0.0 if replayed else time.perf_counter()

    @property
    def numbers(self) -> list[str]:
        """GDB's numbers of the trace's breakpoints."""
        return [str(each.number) for each in self._breakpoints]

    @property
    def full(self) -> bool:
        """Whether it has recorded as many hits as wanted."""
        return self._count is not None and self._seen >= self._count

    def _set_probe(self, index: int, where: str, args: list[str]) -> None:
        probe = Probe(self, index, where, args)
        self._probes.append(probe)
        self._breakpoints.append(probe)
        if probe.pending:
            raise gdb.GdbError(f'Function "{where}" not defined.')

    def _check(self) -> None:
        """Check that the expressions can be evaluated, and the condition in at least one location."""
        for probe in self._probes:
            for each in probe.expressions:
                if words := self._error(probe, each.text):
                    raise gdb.GdbError(f"{each.text} at {probe.where}: {words}")
        errors = {probe: self._error(probe, self._when) for probe in self._probes if self._when}
        if errors and all(errors.values()):
            probe, words = next(iter(errors.items()))
            raise gdb.GdbError(f"the condition {self._when} at {probe.where}: {words}")
        for probe, words in errors.items():
            if words:
                probe.enabled = False
                self.notes.append(f"{probe.where} records no hits: no such condition there: {words}")

    def _error(self, probe: Probe, text: str) -> str:
        return vmd_trace_variables.unknown(text, self._texts) or probe.evaluation_error(text)

    def _set_exits(self, where: str) -> bool:
        """Set breakpoints at a function's exits, in each of its copies; return whether there are any."""
        already = len(self._breakpoints)
        for sal in gdb.decode_line(where)[1] or ():
            returned, elsewhere = vmd_function_exits.exits(sal.pc)
            inlined, function = vmd_function_exits.functions(sal.pc)
            result = _result(function)
            name = re.findall(r"\w+", where)[-1:]
            if not returned and not elsewhere:
                self.notes.append(f"{where}: no return instruction found: its hits have no return value")
                continue
            if any(each.name in name for each in inlined):
                self.notes.append(f"{where} is inlined into {function}: its hits there have no return value")
                continue
            if result is None:
                self.notes.append(f"{where} returns no value in a register: its hits have no return value")
                continue
            self._breakpoints += [
                Exit(self, vmd_function_exits.moving(address), result) for address in returned
            ]
            self._breakpoints += [
                Exit(self, vmd_function_exits.moving(address), None) for address in elsewhere
            ]
            if function is None:
                register = self._arch.result
                self.notes.append(f"{where} has no known type: its return values are the whole ${register}")
            if elsewhere:
                self.notes.append(
                    f"{where} also exits by {len(elsewhere)} jumps to other functions:"
                    " hits that exit there have no return value"
                )
        return len(self._breakpoints) > already

    def hit(self, index: int, expressions: list[Expression], *, returns: bool) -> None:
        """Record a hit of the selected CPU.

        Args:
            index: The location's index.
            expressions: The expressions to record.
            returns: Whether the hit is complete only when its function returns.
        """
        now = self._now() - self.started
        if self.full:
            return
        context = self._context = self._context or HitContext()
        here = Here(context)
        if self._when and not self._holds(here):
            return
        if self._double_hits.repeated(here.cpu, here.registers):
            return
        self._seen += 1
        with self._of_args.of(here):
            values = [each.note(here.registers) for each in expressions]
        hit = [
            index,
            now,
            context.clock(),
            here.cpu,
            here.task and (here.task.pid, here.task.name),
            values,
            _frames(gdb.selected_frame()) if self._backtrace else (),
            None,
            None,
        ]
        if returns:
            # The stack pointer identifies a call: each task has its own stack, and nested calls are deeper.
            earlier = self._open.pop(key := _caller_sp(gdb.selected_frame()), None)
            self._open[key] = hit
            if earlier is not None:
                self._hits.append(earlier)
        else:
            self._hits.append(hit)

    def left(self, result: Result | None) -> None:
        """Record that the selected CPU is about to leave a function."""
        registers, arch = Registers(), self._arch
        hit = self._open.pop((registers[arch.sp] + arch.return_address_bytes) & WORD, None)
        if hit is not None:
            hit[-2] = None if result is None else result(registers[arch.result])
            hit[-1] = self._now() - self.started - hit[1]
            self._hits.append(hit)

    def lost(self, why: str) -> None:
        """Count a hit that could not be recorded."""
        self._lost.append(why)

    def take(self, seen: int) -> list[Any]:
        """Return the recorded hits after the first `seen`, which the host has; delete those.

        Returned hits are kept until the host confirms them: GDB may report an error for an MI command after
        it has run it, because the guest resumes from another hit.
        """
        del self._hits[: seen - self._forgotten]
        self._forgotten = seen
        return self._hits

    def _holds(self, here: Here) -> bool:
        try:
            with self._of_condition.of(here):
                value = gdb.parse_and_eval(self._condition)
            if value.type.code != gdb.TYPE_CODE_VOID:  # void is true to Python
                return bool(value)
            why = "it is void"
        except gdb.error as error:
            why = str(error)
        # A name in it has no value at this hit, or at no hit if the condition is wrong.
        self._why = self._why or why
        return False

    def messages(self) -> list[str]:
        """Return notes for the user: what is not recorded, and the first error of each expression."""
        found = list(dict.fromkeys(self.notes))
        if self._lost:
            found.append(f"{len(self._lost)} hits could not be recorded: {self._lost[0]}")
        if self._why:
            found.append(
                f"hits at which the condition {self._when} cannot be evaluated are not recorded: {self._why}"
            )
        for probe in self._probes:
            found += [f"{each.text} at {probe.where}: {each.why}" for each in probe.expressions if each.why]
        return found

    def end(self) -> None:
        """Delete the breakpoints; hits whose function has not returned have no return value."""
        for each in self._breakpoints:
            if each.is_valid():
                each.delete()
        self._breakpoints.clear()
        self._hits += self._open.values()
        self._open.clear()


class Probe(gdb.Breakpoint):
    """Records each hit of one location."""

    def __init__(self, trace: Trace, index: int, where: str, args: list[str]) -> None:
        # Internal breakpoints do not appear in `info breakpoints`, and cause no MI record at a hit.
        super().__init__(where, type=vmd_patching.kind_of(where), internal=True)
        self.where = where
        self.returns = False
        self._trace = trace
        self._index = index
        self.expressions = [Expression(each) for each in args]

    def evaluation_error(self, text: str) -> str:
        """Return GDB's error if an expression can never be evaluated at the location; else ""."""
        try:
            # GDB parses a condition in the scope of the location, and does not evaluate it yet.
            self.condition = vmd_trace_variables.comparable(text)
            self.condition = None
        except gdb.error as error:
            if not vmd_debuginfo.missing():
                return str(error)
            first = vmd_arch.current().arguments[0]
            return vmd_debuginfo.lacking(f"this; registers can be used: ${first}, or (int) ${first}")
        return ""

    def stop(self) -> bool:
        """Record it and continue, unless the guest is to stop."""
        # After an exception of any kind GDB would stop the guest here.
        try:
            self._trace.hit(self._index, self.expressions, returns=self.returns)
        except Exception as error:  # noqa: BLE001 - it is counted and said
            self._trace.lost(f"at {self.where}: {error}")
        return bool(_HALTING)


class Exit(gdb.Breakpoint):
    """Records that a function exits; `result` gives the return value, None for a jump elsewhere."""

    def __init__(self, trace: Trace, where: str, result: Result | None) -> None:
        super().__init__(where, internal=True)
        self._trace = trace
        self._result = result

    def stop(self) -> bool:
        """Record it and continue, unless the guest is to stop."""
        try:
            self._trace.left(self._result)
        except Exception as error:  # noqa: BLE001 - it is counted and said
            self._trace.lost(f"at an exit: {error}")
        return bool(_HALTING)


def _result(function: gdb.Symbol | None) -> Result | None:
    """Return what makes a function's return value of its register; None if no register holds it."""
    if function is None:
        # Without debugging information, and for a function in assembler.
        return lambda number: number - (WORD + 1) if number > WORD - _MAX_ERRNO else number
    kind = vmd_function_exits.return_type(function)
    return None if kind is None else lambda number: narrowed(number, kind)


def _register(frame: gdb.Frame, name: str) -> int:
    return int(frame.read_register(name).cast(word())) & WORD


def _caller_sp(frame: gdb.Frame) -> int:
    caller = vmd_frame.called(frame).older()
    return _register(caller, vmd_arch.current().sp) if caller is not None else 0


def _frames(frame: gdb.Frame) -> list[tuple[str, int, str, int]]:
    found: list[tuple[str, int, str, int]] = []
    here: gdb.Frame | None = frame
    try:
        while here is not None and here.pc() and len(found) < DEPTH:
            sal = here.find_sal()
            file = sal.symtab.fullname() if sal.symtab is not None else ""
            found.append((here.name() or "", here.pc() & WORD, file, sal.line))
            here = here.older()
    except gdb.error:
        pass  # the backtrace ends where GDB cannot unwind further
    return found


_TRACES: dict[int, Trace] = {}
_NUMBERING = itertools.count(1)

_HALTING: set[str] = set()
"""Not empty: the next hit of a trace stops the guest; see `halt`."""


def open_traces() -> list[str]:
    """Return the numbers of the running traces."""
    return [str(number) for number in _TRACES]


def start(wanted: str) -> dict[str, object]:
    """`-vmd-trace-start WANTED`: start a trace; WANTED is JSON in base64."""
    trace = Trace(json.loads(base64.b64decode(wanted)))
    number = next(_NUMBERING)
    _TRACES[number] = trace
    return {
        "trace": str(number),
        "numbers": ",".join(trace.numbers),
        "started": repr(trace.started),
        "notes": _packed(trace.messages()),
    }


def take(number: str, seen: str) -> dict[str, object]:
    """`-vmd-trace-take TRACE SEEN`: the hits after the first SEEN; works while the guest runs."""
    trace = _TRACES[int(number)]
    return _batch(trace, trace.full, seen)


def halt(wanted: str) -> dict[str, object]:
    """`-vmd-trace-halt 1|0`: have the next hit of any trace stop the guest, or no longer.

    While hits come one after the other the guest hardly runs, and an interrupt does not reach it in time.
    """
    _HALTING.clear()
    _HALTING.update({wanted} - {"0"})
    return {}


def end(number: str, seen: str = "0") -> dict[str, object]:
    """`-vmd-trace-end TRACE SEEN`: delete its breakpoints in the stopped guest; returns the other hits."""
    trace = _TRACES.pop(int(number))
    full = trace.full
    trace.end()
    return _batch(trace, full, seen)


def _batch(trace: Trace, full: bool, seen: str) -> dict[str, object]:
    return {
        "full": str(int(full)),
        "hits": _packed(trace.take(int(seen))),
        "notes": _packed(trace.messages()),
    }


def _packed(what: list[Any]) -> str:
    return base64.b64encode(json.dumps(what, separators=(",", ":")).encode()).decode("ascii")
