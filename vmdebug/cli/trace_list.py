"""`vmdebug trace --list`: the places that can be traced, with what can be read there."""

from __future__ import annotations

from collections.abc import Sequence

from vmdebug.cli import render
from vmdebug.errors import UsageError

_MODULES_SECONDS = 10.0
"""How long the guest may take to say which modules it has loaded."""


def put(name: str | None, patterns: Sequence[str], *, as_json: bool) -> None:
    """Print the functions and tracepoints that match patterns; of a function without a pattern, the lines.

    Functions of the modules that the guest has loaded are listed while it runs.

    Args:
        name: The VM; None for the only one.
        patterns: The patterns, or the names of functions.
        as_json: Whether to print one object a line.

    Raises:
        UsageError: the VM has no vmlinux, or nothing matches.
        NotCompiledError: the vmlinux has no DWARF.
    """
    import msgspec

    from vmdebug import loaded_modules, vm
    from vmdebug.arch import by_name
    from vmdebug.trace.expressions import listing
    from vmdebug.trace.expressions.kernel import Kernel

    machine = vm.find(name)
    kernel = machine.state.spec.kernel
    if kernel.vmlinux is None:
        raise UsageError("this guest has no vmlinux, which lists the functions", hint="give it --vmlinux")
    modules = loaded_modules.loaded(machine, timeout=_MODULES_SECONDS)
    with render.step(render.SYMBOLS), Kernel(kernel.vmlinux, modules) as opened:
        found = [
            each for pattern in patterns for each in listing.places(opened, pattern, by_name(kernel.arch))
        ]
    for each in found:
        where = f"{each.file}:{each.line}" if each.file else ""
        lines = [f"{each.kind:<10}  {each.name:<32}  {where}".rstrip()]
        lines += [f"{'':12}{', '.join(each.values)}"] if each.values else []
        render.put(msgspec.json.encode(each).decode() if as_json else "\n".join(lines))
