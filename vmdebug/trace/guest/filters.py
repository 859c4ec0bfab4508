"""Conditions as the filter of an event in tracefs, for the conditions that it can express.

See Documentation/trace/events.rst. A filter compares a field with a constant of the field's type.
"""

from __future__ import annotations

from collections.abc import Callable

from vmdebug.trace.expressions.operations import Code
from vmdebug.trace.guest import values
from vmdebug.trace.guest.fetches import FIRST_FIELD, LOWEST_ADDRESS, Fetches
from vmdebug.trace.guest.values import Computed, Constant, Cpu, Either, Loaded, Register, SameText, Value

_COMPARISONS = {
    Code.EQUAL: ("==", "!="),
    Code.LESS: ("<", ">="),
    Code.LESS_SIGNED: ("<", ">="),
    Code.LESS_OR_EQUAL: ("<=", ">"),
    Code.LESS_OR_EQUAL_SIGNED: ("<=", ">"),
}
"""The operator of each comparison, and its opposite."""

_TURNED = {"==": "==", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
"""The operator with its operands exchanged."""

_SIGNED = (Code.LESS_SIGNED, Code.LESS_OR_EQUAL_SIGNED)

_WORD = 8


class _CannotError(Exception):
    """tracefs cannot express it."""


def text(condition: Value, fetches: Fetches, name: Callable[[int], str]) -> str:
    """Return a condition as a filter; "" if tracefs cannot express it.

    It also lets those records through for which the condition cannot be evaluated.

    Args:
        condition: The condition.
        fetches: The event's fetch arguments; those that the condition needs are there.
        name: Returns the name of a field by its place in the record.
    """
    try:
        return _Filter(fetches, name).text(condition)
    except _CannotError:
        return ""


def _extended(value: Value, part: Value) -> Value:
    """Return the part of a number that is extended, if the whole is 0 exactly when the part is.

    Raises:
        _CannotError: this is not known.
    """
    match value, part:
        case Computed(op=op), Computed(op=inner, operands=(_, Constant(value=bits))) if (
            inner.code is Code.AND
        ):
            if not op.value and bits < 1 << op.size:
                return part
    raise _CannotError


class _Filter:
    def __init__(self, fetches: Fetches, name: Callable[[int], str]) -> None:
        self._fetches = fetches
        self._name = name

    def text(self, condition: Value) -> str:
        return self._truth(condition, yes=True)

    def _truth(self, value: Value, *, yes: bool) -> str:
        """Return the filter for a value that is not 0; with `yes` false, for one that is 0."""
        match value:
            case Computed(op=op, operands=(operand,)) if op.code in (Code.NOT, Code.EXTEND):
                part = operand if op.code is Code.NOT else _extended(value, operand)
                return self._truth(part, yes=yes == (op.code is Code.EXTEND))
            case Either(condition=condition, yes=then, no=Constant(value=otherwise)) if otherwise in (0, 1):
                # C's && and ||, or their opposites.
                first = self._truth(condition, yes=bool(otherwise) != yes)
                joint = "&&" if bool(otherwise) != yes else "||"
                return f"({first} {joint} {self._truth(then, yes=yes)})"
            case Computed(op=op, operands=(left, right)) if op.code in _COMPARISONS:
                return self._compared(op.code, left, right, yes=yes)
            case Computed(op=op, operands=(left, Constant(value=bits))) if op.code is Code.AND:
                return self._masked(left, bits, yes=yes)
            case SameText():
                return self._same(value, yes=yes)
            case _:
                field, _ = self._field(value)
                return self._readable(value, f"{field} {'!=' if yes else '=='} 0")

    def _masked(self, value: Value, bits: int, *, yes: bool) -> str:
        field, kind = self._field(value)
        found = f"{field} & {values.signed64(bits) if kind[0] == 's' else bits}"
        return self._readable(value, found if yes else f"!({found})")

    def _compared(self, code: Code, left: Value, right: Value, *, yes: bool) -> str:
        operator = _COMPARISONS[code][0 if yes else 1]
        if isinstance(left, Constant):
            left, right, operator = right, left, _TURNED[operator]
        if not isinstance(right, Constant):
            raise _CannotError
        field, kind = self._field(left)
        signed, bits = kind[0] == "s", int(kind[1:])
        as_signed = code in _SIGNED or (code is Code.EQUAL and signed)
        constant = values.signed64(right.value) if as_signed else right.value
        if code is not Code.EQUAL and code not in _SIGNED and signed:
            raise _CannotError
        if code in _SIGNED and not signed and bits == 8 * _WORD:
            raise _CannotError
        low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
        if not low <= constant < high:
            raise _CannotError
        return self._readable(left, f"{field} {operator} {constant}")

    def _field(self, value: Value) -> tuple[str, str]:
        """Return the name and the type of the field that has a value."""
        match value:
            case Cpu():
                return "CPU", "s32"
            case Loaded() if self._fetches.is_pid(value):
                return "common_pid", "s32"
            case Register() | Loaded():
                place = self._fetches.place(value)
                return self._name(place), self._fetches.fields[place - FIRST_FIELD].type
            case _:
                raise _CannotError

    def _readable(self, value: Value, found: str) -> str:
        """Return a filter that also lets records through in which the value could not be read."""
        if not isinstance(value, Loaded) or self._fetches.is_pid(value):
            return found
        return self._through(value.address, found)

    def _through(self, address: Value, found: str) -> str:
        names = [self._name(each) for each in self._fetches.pointers(address)]
        wrong = [f"{each} < {LOWEST_ADDRESS} || {each} >= {(1 << 64) - LOWEST_ADDRESS}" for each in names]
        return f"({' || '.join((*wrong, found))})" if wrong else found

    def _same(self, value: SameText, *, yes: bool) -> str:
        wanted = value.text.decode("ascii", "replace")
        if not wanted.isprintable() or not wanted.isascii() or set(wanted) & set("\"'\\*?["):
            raise _CannotError
        operator = "==" if yes else "!="
        if self._fetches.is_comm(value.address):
            return f'COMM {operator} "{wanted}"'
        raise _CannotError  # an unreadable string is none
