"""Traces: breakpoints that note what they see inside GDB and let the guest run on.

Nothing goes to the host at a hit; it takes what has been noted in batches. A return value
is noted where the function leaves: GDB can plant no breakpoint while the guest runs, nor
in `stop()`, so each of the function's own exits has one from the start.
See "Manipulating breakpoints using Python" in GDB's manual.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import struct
import time
from typing import Any

import gdb
import vmd_exits
import vmd_kernel
import vmd_slide
import vmd_twice
import vmd_value

STRING_LIMIT = 256
"""How much of a string is noted, in bytes."""

DEPTH = 64
"""How many frames of a backtrace are noted."""

_COMM = 16
"""Bytes of a task's name: TASK_COMM_LEN of include/linux/sched.h."""

_WORD = 2**64 - 1
_NUMBERS = (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR, gdb.TYPE_CODE_BOOL, gdb.TYPE_CODE_ENUM)
_PATH = re.compile(r"[A-Za-z_]\w*(?:(?:->|\.)[A-Za-z_]\w*)*")


class Expression:
    """What is noted of a frame; a variable and its fields are read without GDB's parser.

    Args:
        text: In the language of the frame.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        parts = re.split(r"->|\.", text) if _PATH.fullmatch(text) else [""]
        self._name, self._fields = parts[0], parts[1:]
        self._symbols: dict[int, gdb.Symbol] = {}

    def note(self, frame: gdb.Frame) -> Any:
        """Return its value as JSON has it; None where it was optimised out or cannot be read."""
        try:
            return plain(self._value(frame))
        except gdb.error:
            return None

    def _value(self, frame: gdb.Frame) -> gdb.Value:
        symbol = self._symbols.get(frame.pc()) if self._name else None
        if symbol is None or not symbol.is_valid():
            symbol = gdb.lookup_symbol(self._name)[0] if self._name else None
            if symbol is None:
                return gdb.parse_and_eval(self._text)
            self._symbols[frame.pc()] = symbol
        value = frame.read_var(symbol)
        for field in self._fields:
            value = value[field]
        return value


def plain(value: gdb.Value) -> Any:
    """Return a value as JSON has it: a number, a string where it is one, else GDB's words.

    Raises:
        gdb.error: it cannot be read.
    """
    kind = value.type.strip_typedefs()
    if value.is_optimized_out:
        found: Any = None
    elif kind.code in _NUMBERS:
        found = int(value)
    elif kind.code == gdb.TYPE_CODE_PTR:
        found = _pointed(int(value) & _WORD, kind)
    elif kind.code == gdb.TYPE_CODE_FLT:
        found = float(value)
    elif kind.code == gdb.TYPE_CODE_ARRAY and _is_text(kind):
        text = value.bytes if hasattr(value, "bytes") else value.string(length=kind.sizeof).encode()
        found = text.partition(b"\0")[0].decode(errors="replace")
    else:
        found = value.format_string(max_depth=1)
    return found


def _pointed(address: int, kind: gdb.Type) -> int | str:
    if str(kind.target().strip_typedefs().unqualified()) != "char":
        return address
    try:
        return vmd_value.string(address, STRING_LIMIT).decode(errors="replace")
    except gdb.error:
        return address


def _is_text(kind: gdb.Type) -> bool:
    # The kernel's names are of either: d_iname is unsigned.
    return str(kind.target().strip_typedefs().unqualified()) in ("char", "unsigned char")


class Kernel:
    """Where a hit's task and the guest's time lie; found at the first hit, when the kernel is placed."""

    def __init__(self) -> None:
        self._current = self._pid = self._comm = self._clock = 0
        self._has_task, self._has_clock = self._find_task(), self._find_clock()

    def _find_task(self) -> bool:
        try:
            task = vmd_kernel.struct("task_struct")
            try:
                hot = gdb.parse_and_eval("pcpu_hot")["current_task"]
            except gdb.error:
                hot = gdb.parse_and_eval("current_task")
            address = vmd_kernel.address_of(hot)
            linked = address - vmd_slide.applied()
            self._current = linked if linked < vmd_kernel.ZERO_BASED else address
            offsets = {field.name: (field.bitpos or 0) // 8 for field in task.fields() if field.name}
            self._pid, self._comm = offsets["pid"], offsets["comm"]
        except (gdb.error, gdb.GdbError, KeyError):
            return False
        return True

    def _find_clock(self) -> bool:
        try:
            clock = gdb.parse_and_eval("tk_core.timekeeper.tkr_mono")
            offsets = [int(clock[name].address or 0) for name in ("shift", "xtime_nsec", "base")]
        except gdb.error:
            return False
        self._clock = offsets[0]
        self._nsec, self._base = offsets[1] - offsets[0], offsets[2] - offsets[0]
        return True

    def task(self, inferior: gdb.Inferior, frame: gdb.Frame) -> tuple[int, str] | None:
        """Return pid and name of what the selected CPU runs; None where there is no telling."""
        if not self._has_task:
            return None
        try:
            # In the kernel GS holds the CPU's per-CPU offset, and QEMU hands it over with the registers.
            per_cpu = int(frame.read_register("gs_base"))
            pointer = inferior.read_memory((self._current + per_cpu) & _WORD, 8)
            task = int.from_bytes(bytes(pointer), "little")
            # Both in one read: a packet more costs more than the bytes between them.
            start = min(self._pid, self._comm)
            data = bytes(inferior.read_memory(task + start, abs(self._pid - self._comm) + _COMM))
        except (gdb.error, ValueError):
            return None
        (pid,) = struct.unpack_from("<i", data, self._pid - start)
        comm = data[self._comm - start :][:_COMM]
        return pid, comm.partition(b"\0")[0].decode(errors="replace")

    def clock(self, inferior: gdb.Inferior) -> float | None:
        """Return the guest's monotonic time in seconds, as of its last tick: kernel/time/timekeeping.c."""
        if not self._has_clock:
            return None
        try:
            data = bytes(inferior.read_memory(self._clock, max(self._nsec, self._base) + 8))
        except gdb.error:
            return None
        shift = struct.unpack_from("<I", data)[0]
        nsec = struct.unpack_from("<Q", data, self._nsec)[0] >> (shift & 63)
        return float((struct.unpack_from("<q", data, self._base)[0] + nsec) / 1e9)


class Trace:
    """What one trace has noted and nobody has taken; the order is that of the ends where it has returns.

    Args:
        wanted: The host's words; see `debugger/trace.py`.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        self._when: str = wanted["when"]
        self._count: int | None = wanted["count"]
        self._backtrace: bool = wanted["backtrace"]
        self._ret: bool = wanted["ret"]
        self._noted: list[Any] = []
        self._forgotten = 0
        self._seen = 0
        self._open: dict[int, list[Any]] = {}
        self._kernel: Kernel | None = None
        self._inferior = gdb.selected_inferior()
        self._twice = vmd_twice.Twice()
        self._planted: list[gdb.Breakpoint] = []
        self.notes: list[str] = []
        try:
            for index, (where, args) in enumerate(wanted["probes"]):
                self._plant(index, where, args)
        except BaseException:
            self.end()
            raise
        self._started = time.perf_counter()

    @property
    def numbers(self) -> list[str]:
        """GDB's numbers of its breakpoints."""
        return [str(each.number) for each in self._planted]

    @property
    def full(self) -> bool:
        """Whether it has seen as many hits as it was to."""
        return self._count is not None and self._seen >= self._count

    def _plant(self, index: int, where: str, args: list[str]) -> None:
        probe = Probe(self, index, where, args)
        self._planted.append(probe)
        if probe.pending:
            raise gdb.GdbError(f'Function "{where}" not defined.')
        if self._ret:
            self._plant_exits(where)

    def _plant_exits(self, where: str) -> None:
        for sal in gdb.decode_line(where)[1] or ():
            returned, elsewhere = vmd_exits.exits(sal.pc)
            kind = vmd_exits.return_type(sal.pc)
            if not returned and not elsewhere:
                self.notes.append(f"{where}: its returns are not found: --ret is for x86-64")
                continue
            if kind is None:
                self.notes.append(
                    f"{where} returns nothing that a register holds: its hits have no return value"
                )
                continue
            self._planted += [Exit(self, vmd_exits.moving(address), kind) for address in returned]
            self._planted += [Exit(self, vmd_exits.moving(address), None) for address in elsewhere]
            if elsewhere:
                self.notes.append(
                    f"{where} also ends in {len(elsewhere)} jumps to other functions:"
                    " hits that leave there have no return value"
                )

    def hit(self, index: int, expressions: list[Expression]) -> None:
        """Note a hit of the selected CPU."""
        now = time.perf_counter() - self._started
        if self.full:
            return
        frame = gdb.selected_frame()
        if self._when and not _holds(self._when):
            return
        if self._twice.told(frame):
            return
        self._seen += 1
        kernel = self._kernel = self._kernel or Kernel()
        thread = gdb.selected_thread()
        noted = [
            index,
            now,
            kernel.clock(self._inferior),
            thread.num - 1 if thread is not None else 0,
            kernel.task(self._inferior, frame),
            [each.note(frame) for each in expressions],
            _frames(frame) if self._backtrace else (),
            None,
        ]
        if self._ret:
            # The stack tells calls apart: each task has its own, and a call within the call lies deeper.
            earlier = self._open.pop(key := _caller_sp(frame), None)
            self._open[key] = noted
            if earlier is not None:
                self._noted.append(earlier)
        else:
            self._noted.append(noted)

    def left(self, kind: gdb.Type | None) -> None:
        """Note that the selected CPU is about to leave a function."""
        frame = gdb.newest_frame()
        noted = self._open.pop((_register(frame, "rsp") + 8) & _WORD, None)
        if noted is not None:
            noted[-1] = None if kind is None else vmd_exits.returned(_register(frame, "rax"), kind)
            self._noted.append(noted)

    def take(self, seen: int) -> list[Any]:
        """Return what was noted, but for the first `seen`, which the host has and are forgotten.

        What is handed over stays until the host says that it has it: GDB may refuse a command of MI's when it
        has been carried out, as the guest runs on from another hit.
        """
        del self._noted[: seen - self._forgotten]
        self._forgotten = seen
        return self._noted

    def end(self) -> None:
        """Take the breakpoints out; what has not returned is noted without."""
        for each in self._planted:
            if each.is_valid():
                each.delete()
        self._planted.clear()
        self._noted += self._open.values()
        self._open.clear()


class Probe(gdb.Breakpoint):
    """Notes each hit of one place."""

    def __init__(self, trace: Trace, index: int, where: str, args: list[str]) -> None:
        # Internal ones have no number that a person sees, and no record of MI's a hit.
        super().__init__(where, internal=True)
        self._trace = trace
        self._index = index
        self._expressions = [Expression(each) for each in args]

    def stop(self) -> bool:
        """Note it, and go on."""
        self._trace.hit(self._index, self._expressions)
        return False


class Exit(gdb.Breakpoint):
    """Notes that a function is left: by a return, where it has the type of what is returned."""

    def __init__(self, trace: Trace, where: str, kind: gdb.Type | None) -> None:
        super().__init__(where, internal=True)
        self._trace = trace
        self._kind = kind

    def stop(self) -> bool:
        """Note it, and go on."""
        self._trace.left(self._kind)
        return False


def _holds(condition: str) -> bool:
    try:
        return bool(gdb.parse_and_eval(condition))
    except gdb.error:
        return False  # what it speaks of is not there at this hit


def _register(frame: gdb.Frame, name: str) -> int:
    return int(frame.read_register(name).cast(gdb.lookup_type("unsigned long"))) & _WORD


def _caller_sp(frame: gdb.Frame) -> int:
    inner: gdb.Frame | None = frame
    while inner is not None and inner.type() == gdb.INLINE_FRAME:
        inner = inner.older()
    caller = inner.older() if inner is not None else None
    return _register(caller, "rsp") if caller is not None else 0


def _frames(frame: gdb.Frame) -> list[tuple[str, int, str, int]]:
    found: list[tuple[str, int, str, int]] = []
    here: gdb.Frame | None = frame
    try:
        while here is not None and here.pc() and len(found) < DEPTH:
            sal = here.find_sal()
            file = sal.symtab.fullname() if sal.symtab is not None else ""
            found.append((here.name() or "", here.pc() & _WORD, file, sal.line))
            here = here.older()
    except gdb.error:
        pass  # the stack ends where GDB cannot read on
    return found


_TRACES: dict[int, Trace] = {}
_NUMBERING = itertools.count(1)


def open_traces() -> list[str]:
    """Return the numbers of the traces that have begun and not ended."""
    return [str(number) for number in _TRACES]


def start(wanted: str) -> dict[str, object]:
    """`-vmd-trace-start WANTED`: begin a trace; WANTED is JSON in base64."""
    trace = Trace(json.loads(base64.b64decode(wanted)))
    number = next(_NUMBERING)
    _TRACES[number] = trace
    return {"trace": str(number), "numbers": ",".join(trace.numbers), "notes": _packed(trace.notes)}


def take(number: str, seen: str) -> dict[str, object]:
    """`-vmd-trace-take TRACE SEEN`: what it has noted after SEEN hits; works while the guest runs."""
    trace = _TRACES[int(number)]
    return {"full": str(int(trace.full)), "hits": _packed(trace.take(int(seen)))}


def end(number: str, seen: str = "0") -> dict[str, object]:
    """`-vmd-trace-end TRACE SEEN`: take its breakpoints out of the stopped guest, and hand over the rest."""
    trace = _TRACES.pop(int(number))
    full = trace.full
    trace.end()
    return {"full": str(int(full)), "hits": _packed(trace.take(int(seen)))}


def _packed(what: list[Any]) -> str:
    return base64.b64encode(json.dumps(what, separators=(",", ":")).encode()).decode("ascii")
