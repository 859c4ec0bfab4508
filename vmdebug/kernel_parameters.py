"""The parameters of a guest's kernel: vmdebug's, and what the user's mean for the console."""

from __future__ import annotations

from collections.abc import Sequence

from vmdebug.arch import Arch

DEBUGGER_PARAMETERS = ("nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1")
"""Parameters that prevent a guest from reporting a stop in the debugger as a hang; `Arch.parameters` has
more.

See Documentation/admin-guide/kernel-parameters.txt: without them the lockup detectors and RCU's stall
detector report the time for which the guest was stopped.
"""


IGNORE_LOGLEVEL = "ignore_loglevel"
"""The parameter that makes the console show all kernel messages, even after `dmesg -n 1`.

Otherwise a warning of the kernel might not appear there. See ignore_loglevel in kernel-parameters.txt.
"""

LOGLEVEL_PARAMETERS = ("quiet", "loglevel", IGNORE_LOGLEVEL)
"""Parameters with which the user chooses the console's log level; then `IGNORE_LOGLEVEL` is not added."""

RECORDED_PARAMETERS = ("nohz=off",)
"""Parameters of a recorded guest.

While QEMU records, it hands over input only when the CPU runs, and an idle CPU without a periodic tick sleeps
for seconds. See nohz= in kernel-parameters.txt.
"""

BAUD = 115200
"""Speed of a serial line, in bit/s: of the guest's console, and of kgdb, as in `kgdboc=ttyS0,115200`.

QEMU's 16550 delays the end of its input by the time of four characters (hw/char/serial.c): 4 ms for each line
at the kernel's default of 9600.
"""


def parameters(row: Arch, *, kaslr: bool, append: str) -> tuple[str, ...]:
    """Return the kernel parameters of a guest: vmdebug's, then the user's, which override them.

    Args:
        row: The guest's architecture.
        kaslr: Whether to keep address randomisation.
        append: The user's parameters, in the form of a kernel command line.
    """
    slide = () if kaslr else ("nokaslr",)
    console = f"console={row.console},{BAUD}"
    said = append.split()
    loud = () if any(word.partition("=")[0] in LOGLEVEL_PARAMETERS for word in said) else (IGNORE_LOGLEVEL,)
    return (console, *slide, *DEBUGGER_PARAMETERS, *loud, *row.parameters, *said)


def console_notes(row: Arch, words: Sequence[str]) -> tuple[str, ...]:
    """Return a note if kernel parameters put the console where vmdebug does not listen.

    Each `console=` gets the kernel's messages; the last one is also /dev/console, which programs write to.
    See Documentation/admin-guide/serial-console.rst.

    Args:
        row: The guest's architecture.
        words: All parameters of the guest.
    """
    consoles = [word.partition("=")[2].partition(",")[0] for word in words if word.startswith("console=")]
    if not consoles or consoles[-1] == row.console:
        return ()
    who = "the guest's programs write" if row.console in consoles else "the kernel and its programs write"
    note = (
        f"console={consoles[-1]} is the last console=: {who} to {consoles[-1]}, and vmdebug reads"
        f" {row.console}; leave it out, or add console={row.console} after it"
    )
    return (note,)
