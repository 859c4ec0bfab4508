"""The MI commands that vmdebug's host side uses.

Long results are base64: MI escapes every quote in JSON, which its readers have to undo. See "GDB/MI Commands
In Python" in GDB's manual; this needs GDB 13.1 or newer.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable

import gdb
import vmd_breakpoint_hits
import vmd_bt_all
import vmd_debuginfo
import vmd_dmesg
import vmd_early
import vmd_exceptions
import vmd_follow
import vmd_frames
import vmd_guest
import vmd_history
import vmd_identity
import vmd_leftover_steps
import vmd_modules
import vmd_patching
import vmd_percpu
import vmd_reverse
import vmd_trace
import vmd_value
import vmd_variables
import vmd_writes


class Command(gdb.MICommand):
    """An MI command that calls a function."""

    def __init__(self, name: str, act: Callable[..., dict[str, object]]) -> None:
        super().__init__(name)
        self._act = act

    def invoke(self, argv: list[str]) -> dict[str, object]:
        """Call the function. Errors of GDB keep their text, without a note about Python."""
        try:
            return self._act(*argv)
        except gdb.error as error:
            raise gdb.GdbError(vmd_debuginfo.explained(error)) from error


def value(known: str, expression: str) -> dict[str, object]:
    """`-vmd-value KNOWN EXPRESSION`: an expression's value, and the layouts of types numbered from KNOWN."""
    return _answer(gdb.parse_and_eval(expression), int(known))


def variable(known: str, kind: str, name: str) -> dict[str, object]:
    """`-vmd-variable KNOWN argument|local NAME`: the frame's variable of that name.

    If the frame has none, the answer lists those that it has, in `names`.
    """
    found = vmd_variables.named(kind, gdb.selected_frame())
    if not found and vmd_debuginfo.missing():
        raise gdb.GdbError(vmd_debuginfo.lacking(f"the {kind}s of functions"))
    if name not in found:
        return {"names": list(found)}
    return _answer(found[name].value(gdb.selected_frame()), int(known))


def element(known: str, number: str, address: str, index: str) -> dict[str, object]:
    """`-vmd-element KNOWN TYPE ADDRESS INDEX`: the target of a pointer, or an element of an array."""
    return _answer(vmd_value.element(int(number), int(address), int(index)), int(known))


def per_cpu(known: str, cpu: str, variable: str) -> dict[str, object]:
    """`-vmd-per-cpu KNOWN CPU VARIABLE`: a CPU's copy of a per-CPU variable."""
    return _answer(vmd_percpu.variable(int(cpu), variable), int(known))


def per_cpu_ptr(known: str, number: str, address: str, cpu: str) -> dict[str, object]:
    """`-vmd-per-cpu-ptr KNOWN TYPE ADDRESS CPU`: the target of a per-CPU pointer for a CPU."""
    place = vmd_percpu.address(int(address), int(cpu))
    return _answer(vmd_value.element(int(number), place, 0), int(known))


def string(address: str, limit: str) -> dict[str, object]:
    """`-vmd-string ADDRESS LIMIT`: the bytes up to the first NUL."""
    return {"data": _packed(vmd_value.string(int(address), int(limit)))}


def dmesg(limit: str) -> dict[str, object]:
    """`-vmd-dmesg LIMIT`: the last lines of the kernel's log."""
    return {"text": _packed("\n".join(vmd_dmesg.lines(int(limit))).encode())}


def backtraces(limit: str, *directories: str) -> dict[str, object]:
    """`-vmd-backtraces LIMIT [DIRECTORY…]`: each CPU's innermost frames, as `vmd-bt-all` prints them.

    Module files below the directories supply symbols: without them, a stack ends at the first module.
    """
    if directories and vmd_guest.kernel_runs():
        vmd_modules.SYMBOLS.use(":".join(directories))
        with contextlib.suppress(
            gdb.error, gdb.GdbError
        ):  # a kernel without modules, or an inconsistent list
            vmd_modules.SYMBOLS.follow()
    return {"text": _packed("\n\n".join(vmd_bt_all.backtraces(str(int(limit)))).encode())}


def back(kind: str) -> dict[str, object]:
    """`-vmd-back continue|step|next|finish|stepi`: go back in a replay; `-vmd-arrived` has the reason."""
    act = {
        "continue": vmd_reverse.back,
        "step": lambda: vmd_reverse.line(into=True),
        "next": lambda: vmd_reverse.line(into=False),
        "finish": vmd_reverse.finish,
        "stepi": vmd_reverse.stepi,
    }[kind]

    def arrived() -> dict[str, object]:
        there = act()
        return {"reason": there.reason, "number": str(there.number)}

    return _moved(arrived)


def goto(position: str) -> dict[str, object]:
    """`-vmd-goto POSITION`: go to a count of instructions in a replay."""

    def there() -> dict[str, object]:
        vmd_history.goto(int(position))
        return {}

    return _moved(there)


def last_write(expression: str) -> dict[str, object]:
    """`-vmd-last-write EXPRESSION`: go before its last write; `-vmd-arrived` has it, or null."""

    def arrived() -> dict[str, object]:
        found = vmd_writes.last_write(expression)
        return {"write": _packed(json.dumps(None if found is None else found._asdict()).encode())}

    return _moved(arrived)


_ARRIVED: dict[str, object] = {}
"""The result of the last move."""


def _moved(act: Callable[[], dict[str, object]]) -> dict[str, object]:
    """Keep the result, or the error: MI answers `^running` when the guest first runs, and nothing later."""
    _ARRIVED.clear()
    try:
        _ARRIVED.update(act())
    except (gdb.error, gdb.GdbError) as error:
        _ARRIVED["error"] = _packed(str(error).encode())
    except KeyboardInterrupt:
        _ARRIVED["error"] = _packed(b"it was interrupted")
    return {}


def arrived() -> dict[str, object]:
    """`-vmd-arrived`: the result of the last move in a replay, once it is complete."""
    return dict(_ARRIVED)


def _answer(result: gdb.Value, known: int) -> dict[str, object]:
    entry, data = vmd_value.about(result)
    entry["layouts"] = vmd_value.LAYOUTS.described[known:]
    return {"about": _packed(json.dumps(entry).encode()), "data": _packed(data)}


def _packed(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


COMMANDS = (
    ("-vmd-value", value),
    ("-vmd-variable", variable),
    ("-vmd-element", element),
    ("-vmd-string", string),
    ("-vmd-per-cpu", per_cpu),
    ("-vmd-per-cpu-ptr", per_cpu_ptr),
    ("-vmd-hit", vmd_breakpoint_hits.hit),
    ("-vmd-follow", vmd_follow.follow),
    ("-vmd-end-follow", vmd_follow.end_follow),
    ("-vmd-dmesg", dmesg),
    ("-vmd-backtraces", backtraces),
    ("-vmd-prove", vmd_identity.prove),
    ("-vmd-wait-kernel", vmd_early.wait_kernel),
    ("-vmd-end-wait-kernel", vmd_early.end_wait_kernel),
    ("-vmd-accel", vmd_guest.tell_accel),
    ("-vmd-need-hardware", vmd_patching.check),
    ("-vmd-steps", vmd_leftover_steps.next_),
    ("-vmd-back", back),
    ("-vmd-goto", goto),
    ("-vmd-last-write", last_write),
    ("-vmd-arrived", arrived),
    ("-vmd-trace-start", vmd_trace.start),
    ("-vmd-trace-take", vmd_trace.take),
    ("-vmd-trace-halt", vmd_trace.halt),
    ("-vmd-trace-end", vmd_trace.end),
)


def define() -> None:
    """Define the commands."""
    for name, act in COMMANDS:
        Command(name, act)
    vmd_exceptions.register()
    vmd_frames.register()
