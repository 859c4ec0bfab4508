"""QEMU's options that record a guest, and those that replay it; pure.

See docs/system/replay.rst of QEMU. Both QEMUs must have the same machine and the same devices in the same
order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vmdebug.arch import Arch
from vmdebug.errors import HostError
from vmdebug.recording import files
from vmdebug.recording.manifest import SHIFT
from vmdebug.vm.features import Features
from vmdebug.vm.qemuargs import value
from vmdebug.vm.rundir import RunDir

VMGENID = "8b3a2f6c-31f5-4c0b-9d56-0a7d6c1f2e10"
"""The generation id of recorded guests; QEMU would choose another one for the replay."""

CONSOLE, SHELL = "console0", "shell-line"
"""The ids of the chardevs of the console and of the agent's serial line."""

PANIC_GOES_ON = ("-action", "panic=none")


def clock(directory: Path) -> tuple[str, ...]:
    """Count instructions, and log all that is not determined by them.

    vAPIC's option ROM patches the guest's code at moments that are not logged: loading a snapshot hung.
    """
    log = value(files.log(directory))
    return ("-icount", f"shift={SHIFT},rr=record,rrfile={log}", "-global", "apic-common.vapic=off")


def lines(directory: Path, rundir: RunDir, arch: Arch, features: Features) -> tuple[str, ...]:
    """Give the guest its console, and the serial line of the agent, with input that is logged.

    Input comes from a FIFO. Output goes to a file, which takes every byte at once: a socket that is full
    makes QEMU write it later, at a moment that is not logged. `-serial` makes QEMU log the input, `-device`
    does not. Nothing here is virtio-serial: when it is loaded from a snapshot, it sets a timer that the log
    does not have.
    """
    console = f"pipe,id={CONSOLE},path={value(files.line(directory, 'console'))}"
    log = f"logfile={value(rundir.console_log)},logappend=on"
    words = ["-chardev", f"{console},{log}", "-serial", f"chardev:{CONSOLE}"]
    driver, index = second(arch)
    if driver in features.uarts:
        words += ["-chardev", f"pipe,id={SHELL},path={value(files.line(directory, 'shell'))}"]
        for _ in range(index - 1):
            words += ["-serial", "none"]
        words += ["-serial", f"chardev:{SHELL}"]
    return tuple(words)


def second(arch: Arch) -> tuple[str, int]:
    """Return the driver of the agent's serial line, and its number."""
    driver, _, rest = arch.second_serial.partition(",")
    _, _, index = rest.partition("index=")
    return driver, int(index or 1)


def own_monitor(rundir: RunDir) -> tuple[str, ...]:
    """Open a QMP socket for the process that types; see `record_relay`."""
    return (
        "-chardev",
        f"socket,id=qmp2,path={value(rundir.relay)},server=on,wait=off",
        "-qmp",
        "chardev:qmp2",
    )


def replayed(
    argv: Sequence[str],
    *,
    qemu: Path,
    name: str,
    run: Path,
    rundir: RunDir,
    log: Path,
    moved: Mapping[str, str],
    plugin: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the command line that replays a recording, stopped at its begin.

    Args:
        argv: The command line that recorded it.
        qemu: The emulator.
        name: The name of the replay.
        run: The run directory in `argv`.
        rundir: That of the replay.
        log: QEMU's log.
        moved: By their names in `argv`, where the files of the guest are now.
        plugin: The options that load the plugin.
    """
    words = [str(qemu)]
    rest = iter(argv[1:])
    for word in rest:
        if word in ("-S", "-no-shutdown"):
            continue
        if not word.startswith("-") or word in _ALONE:
            words.append(word)
            continue
        words += _option(word, next(rest, ""), name=name, run=run, rundir=rundir, log=log, moved=moved)
    return (*words, *plugin, "-S")


_ALONE = ("-nodefaults", "-no-user-config", "-no-reboot")


def _option(
    word: str,
    argument: str,
    *,
    name: str,
    run: Path,
    rundir: RunDir,
    log: Path,
    moved: Mapping[str, str],
) -> tuple[str, ...]:
    match word:
        case "-name":
            return (word, f"{name},debug-threads=on")
        case "-icount" if "rr=record" in argument:
            return (word, f"shift={SHIFT},rr=replay,rrfile={value(log)}")
        case "-action":
            return PANIC_GOES_ON
        case "-plugin":
            return ()
        case "-chardev" if argument.startswith("pipe,"):
            line = argument.partition("id=")[2].partition(",")[0]
            out = rundir.console_log if line == CONSOLE else rundir.path / f"{line}.out"
            return (word, f"file,id={line},path={value(out)},append=on")
    argument = argument.replace(value(run), value(rundir.path))
    for before, now in moved.items():
        argument = argument.replace(value(before), value(now))
    return (word, argument)


def refused_here(error: str) -> HostError:
    """Return the error for a QEMU that cannot record."""
    return HostError(
        "this QEMU cannot record a guest",
        hint="install QEMU 7.2 or newer, as Debian's, or put it first on PATH",
        detail=error,
    )
