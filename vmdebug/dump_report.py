"""The report about the kernel in a dump, in the same sections as that of a live guest; by drgn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmdebug.channel.log import trouble
from vmdebug.postmortem import DMESG_LINES, Report, Section, splats
from vmdebug.process import tail

if TYPE_CHECKING:
    from vmdebug.drgn_program.types import Program
    from vmdebug.guest import Kernel

DECODE_SECONDS = 120.0
"""How long it may take to find source lines: unlike a test, a person can wait."""


def dmesg(program: Program) -> str:
    """Return the kernel's log."""
    from drgn.helpers.linux.printk import get_dmesg  # noqa: PLC0415 - drgn is optional

    return get_dmesg(program).decode(errors="replace").rstrip("\n")


def of_dump(program: Program, kernel: Kernel) -> Report:
    """Return the report.

    Args:
        program: The dump, with symbols.
        kernel: Its kernel.
    """
    from vmdebug.drgn_program import tasks  # noqa: PLC0415 - drgn is optional

    log = _made("dmesg", lambda: dmesg(program))
    sections = [
        _made("kernel", lambda: _kernel(program, kernel)),
        _made("backtraces", lambda: _shortened(_backtraces(program), kernel)),
        _made("blocked tasks", lambda: _shortened(tasks.blocked(program, program.stack_trace), kernel)),
        Section("dmesg", tail(log.text, DMESG_LINES), whole=log.text),
    ]
    told = splats(trouble.find(log.text, stamped=True), kernel, seconds=DECODE_SECONDS)
    return Report((*told, *sections))


def _made(title: str, make: Callable[[], str]) -> Section:
    """Return a section, or why it cannot be made: a dump may be incomplete."""
    try:
        return Section(title, make() or "none")
    except Exception as error:  # noqa: BLE001 - drgn's errors have no common class
        return Section(title, f"not available: {error}")


def _kernel(program: Program, kernel: Kernel) -> str:
    from drgn.helpers.linux.panic import panic_message, tainted  # noqa: PLC0415 - drgn is optional

    names = program["init_uts_ns"].name
    said = (names.nodename, names.release, names.version)
    message = panic_message(program)
    lines = [
        " ".join(each.string_().decode(errors="replace") for each in said),
        f"vmlinux {kernel.vmlinux}, build-id {kernel.build_id or 'none'}",
        f"parameters {program['saved_command_line'].string_().decode(errors='replace')}",
        f"panic {message.decode(errors='replace')}" if message else "no panic",
        f"taint {tainted(program).strip() or 'none'}",
    ]
    return "\n".join(lines)


def _backtraces(program: Program) -> str:
    from drgn.helpers.linux.cpumask import for_each_present_cpu  # noqa: PLC0415 - drgn is optional
    from drgn.helpers.linux.sched import cpu_curr  # noqa: PLC0415

    from vmdebug.drgn_program import tasks  # noqa: PLC0415

    parts = []
    # A panic stops the other CPUs, which are then not online.
    for cpu in for_each_present_cpu(program):
        task = cpu_curr(program, cpu)
        try:
            stack = str(program.stack_trace(task))
        except (ValueError, LookupError) as error:
            stack = f"no stack: {error}"
        parts.append(f"CPU {cpu}: {tasks.named(task)}\n{stack}")
    return "\n\n".join(parts)


def _shortened(text: str, kernel: Kernel) -> str:
    return text if kernel.source is None else text.replace(f"{kernel.source}/", "")
