"""Who wrote a variable, and when a function was called, in the past of a replay."""

from __future__ import annotations

from typing import NamedTuple, Self

import gdb
import vmd_batch
import vmd_guest
import vmd_history
import vmd_reverse
import vmd_scan

FRAMES = 16
"""Frames of a backtrace that are printed."""


class Write(NamedTuple):
    """One write that changed a value.

    Args:
        position: Instructions executed before the one that writes.
        pc: Its address.
        function: Its function; "" without symbols.
        place: File and line; "" without symbols.
        old: The value before.
        new: The value after.
    """

    position: int
    pc: int
    function: str
    place: str
    old: str
    new: str

    def __str__(self) -> str:
        at = f", {self.place}" if self.place else ""
        return (
            f"instruction {self.position}: {self.old} -> {self.new}, by {self.function or hex(self.pc)}{at}"
        )


class Watched:
    """The memory of an expression, which later has other frames and values.

    Raises:
        gdb.GdbError: the expression is not in memory.
    """

    def __init__(self, expression: str) -> None:
        self.text = expression
        try:
            value = gdb.parse_and_eval(expression)
            self.spec = vmd_reverse.watched(expression)
        except gdb.error as error:
            raise gdb.GdbError(f"{expression}: {error}") from error
        self._kind, self._address = value.type, int(value.address or 0)

    def value(self) -> str:
        """Return the present value, as GDB prints it."""
        try:
            return gdb.Value(self._address).cast(self._kind.pointer()).dereference().format_string()
        except gdb.error:
            return "not mapped"

    def trap(self) -> vmd_scan.Trap:
        """Return what finds its writes; the value of a hit is what was written."""
        return vmd_scan.Trap(-1, self.spec, watch=True, note=self.value)


def last_write(expression: str) -> Write | None:
    """Go before the last write that changed an expression's value; None and no move if there is none.

    Raises:
        gdb.GdbError: see `Watched`.
    """
    watched, origin = Watched(expression), vmd_history.position()
    with _returning(origin) as search:
        hit = vmd_scan.last([watched.trap()], origin)
        if hit is None:
            return None
        vmd_history.goto_again(hit.position - 1)
        search.found = True
        return _write(watched, str(hit.value))


def all_writes(expression: str) -> list[Write]:
    """Return every write that changed an expression's value, up to the present position."""
    watched, origin = Watched(expression), vmd_history.position()
    writes: list[Write] = []
    with _returning(origin):
        before = ""

        def note() -> object:
            nonlocal before
            frame, new = gdb.newest_frame(), watched.value()
            writes.append(_described(vmd_history.position() - 1, frame, before, new, past=1))
            before = new
            return new

        trap = vmd_scan.Trap(-1, watched.spec, watch=True, note=note)
        starts = [each.position for each in vmd_history.snapshots() if each.position < origin]
        for begin, end in zip(starts, [*starts[1:], origin], strict=True):
            vmd_history.goto(begin)
            before = watched.value()
            vmd_scan.scan([trap], begin, end)
    return writes


def last_call(function: str, condition: str) -> bool:
    """Go back to the last call of a function; return whether there was one, and do not move otherwise."""
    origin = vmd_history.position()
    with _returning(origin) as search:
        hit = vmd_scan.last(_calls(function, condition), origin)
        if hit is not None:
            vmd_history.goto_again(hit.position)
            search.found = True
        return hit is not None


def first_call(function: str, condition: str) -> bool:
    """Go to the first call of a function before the present position, as `last_call` does to the last."""
    origin, traps = vmd_history.position(), _calls(function, condition)
    with _returning(origin) as search:
        starts = [each.position for each in vmd_history.snapshots() if each.position < origin]
        for begin, end in zip(starts, [*starts[1:], origin], strict=True):
            hits = vmd_scan.scan(traps, begin, end, limit=None if condition else 1).hits
            if hits:
                vmd_history.goto_again(hits[0].position)
                search.found = True
                return True
    return False


def differences(first: int, second: int, expression: str) -> list[tuple[str, str, str]]:
    """Return the parts of an expression that differ between two positions: the part, and its two values."""
    origin = vmd_history.position()
    with _returning(origin):
        seen = []
        for position in (first, second):
            vmd_history.goto(position)
            seen.append(_flat(gdb.parse_and_eval(expression), expression))
    before, after = seen
    parts = dict.fromkeys((*before, *after))
    rows = [(part, before.get(part, "none"), after.get(part, "none")) for part in parts]
    return [row for row in rows if row[1] != row[2]]


class _returning:  # noqa: N801 - a context manager
    """Return to the origin at the end of the block, unless something was found."""

    def __init__(self, origin: int) -> None:
        self.found, self._origin = False, origin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if not self.found and vmd_history.replaying():
            vmd_history.goto(self._origin)


def _calls(function: str, condition: str) -> list[vmd_scan.Trap]:
    try:
        places = gdb.decode_line(function)[1] or ()
    except gdb.error as error:
        raise gdb.GdbError(str(error)) from error

    def note() -> object:
        return True if not condition or gdb.parse_and_eval(condition) else None

    return [vmd_scan.Trap(1, f"*{place.pc:#x}", watch=False, note=note) for place in places]


def _write(watched: Watched, new: str) -> Write:
    return _described(vmd_history.position(), gdb.newest_frame(), watched.value(), new)


def _described(position: int, frame: gdb.Frame, old: str, new: str, *, past: int = 0) -> Write:
    """Describe a write; `past` is 1 if its instruction has been executed."""
    sal = gdb.find_pc_line(frame.pc() - past)
    place = f"{sal.symtab.filename}:{sal.line}" if sal.symtab is not None else ""
    return Write(position, frame.pc(), frame.name() or "", place, old, new)


def _flat(value: gdb.Value, name: str) -> dict[str, str]:
    kind = value.type.strip_typedefs()
    if kind.code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
        parts: dict[str, str] = {}
        for field in kind.fields():
            inner = f"{name}.{field.name}" if field.name else name
            parts |= _flat(value[field], inner)
        return parts
    return {name: value.format_string(max_elements=64)}


def need_replay() -> None:
    """Check that GDB is connected to a replay.

    Raises:
        gdb.GdbError: it is not.
    """
    vmd_guest.need_connected()
    vmd_history.position()


def never(what: str) -> str:
    """Return the message for something that was not found before the present position."""
    return f"{what} before instruction {vmd_history.position()}, as far as the recording goes back"


def fail_usage(command: str, usage: str) -> None:
    """End a command whose arguments are wrong."""
    vmd_batch.fail(f"{command}: an argument is missing or wrong\nusage: {usage}", vmd_batch.USAGE)
