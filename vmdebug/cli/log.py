"""`vmdebug log`: prints what the guest wrote to its serial console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug import paths, process
from vmdebug.cli import render, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.guest import Kernel

DECODE_SECONDS = 60.0
"""How long it may take to find source lines: half a second for a kernel of 80 MB, longer for larger ones."""

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug log", "vmdebug log base-nixos -f", "vmdebug log --decode | tail -40"),
)
def log(
    name: verb.VmName = None,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue until the VM ends or Ctrl-C; implies --raw.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Print every byte, including what `exec` sent over the serial line."),
    ] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Add source lines to the addresses of oopses and warnings.")
    ] = False,
) -> None:
    """Print a VM's serial log.

    The log keeps the last 16 MiB of output, and a little more until the next check.
    """
    from vmdebug import vm
    from vmdebug.channel.log import kept, messages

    machine = vm.find(name)
    path = machine.rundir.console_log
    if follow and decode:
        raise UsageError("--decode needs the whole log", hint="leave out --follow")
    if follow:
        with path.open("rb") as log_:
            start = kept.start(log_.fileno())
        _tell_dropped(start)
        # tail(1) waits by inotify for more, and by --pid for QEMU's end.
        process.replace(["tail", "-c", f"+{start + 1}", f"--pid={machine.state.pid}", "-f", path])
    dropped, said = kept.read(path)
    _tell_dropped(dropped)
    said = said if raw else messages.readable(said)
    render.put_bytes(_decoded(said, machine.state.spec.kernel) if decode else said)
    if paths.full(path):
        render.tell(f"note: the log may lack lines: {path} is on a full disk; {paths.file_system(path)}")


def _tell_dropped(count: int) -> None:
    from vmdebug.vm.guardian import LOG_BYTES

    if count:
        render.tell(f"note: {count:,} older bytes were removed: the log keeps the last {LOG_BYTES >> 20} MiB")


def _decoded(said: bytes, kernel: Kernel) -> bytes:
    from vmdebug import kimage
    from vmdebug.deadline import Deadline
    from vmdebug.debugger import decode

    if kernel.vmlinux is None:
        raise UsageError(
            "there is no vmlinux to decode by", hint="start the VM with its kernel's: --vmlinux FILE"
        )
    if not kimage.dwarf(kernel.vmlinux).version:
        render.tell(
            f"note: no source lines: {kernel.vmlinux} has no debugging information; {kimage.WITHOUT_DWARF}"
        )
    text = said.decode(errors="surrogateescape")
    decoded = decode.decode(text, kernel, Deadline.after(DECODE_SECONDS))
    return decoded.encode(errors="surrogateescape")
