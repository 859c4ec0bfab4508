"""`vmdebug ssh`: ssh into a guest, and the configuration for programs that use ssh."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.errors import UsageError


class Ssh(verb.WithTail):
    """`ssh`, whose command follows `--`."""

    tail_metavar = "CMD [ARGS]"


app = verb.new_app()


@app.command(
    cls=Ssh,
    epilog=verb.examples(
        "vmdebug ssh",
        "vmdebug ssh base -- systemctl status",
        "vmdebug ssh base --config >>~/.ssh/config",
        "scp -F <(vmdebug ssh base --config) FILE base:",
    ),
)
def ssh(
    context: typer.Context,
    name: verb.VmName = None,
    *,
    config: Annotated[
        bool,
        typer.Option("--config", help="Print the configuration for ssh, scp, rsync and editors instead."),
    ] = False,
    stdio: Annotated[
        bool,
        typer.Option("--stdio", help="Serve one connection on stdin and stdout, as a ProxyCommand."),
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Exit with status 5 if sshd is not ready in S seconds.")
    ] = 60.0,
) -> None:
    """Log in to a guest with ssh, or run a command there.

    The guest needs sshd in its root file system, and no network: without QEMU's user network, ssh connects
    through the guest's shell. Key and configuration are the VM's own, in its run directory. The exit status
    is that of ssh. CMD is run as by `exec`: one word by the guest's shell, several as they are.
    """
    words = verb.tail(context)
    if (config or stdio) and words:
        raise UsageError("--config and --stdio run no command", hint="leave the command out")
    from vmdebug import process, vm
    from vmdebug import ssh as sshs
    from vmdebug.deadline import Deadline

    machine, deadline = vm.find(name), Deadline.after(timeout)
    if stdio:
        from vmdebug.channel.shell import Streams

        streams = Streams(stdin=sys.stdin.fileno(), stdout=render.put_bytes, stderr=render.tell_bytes)
        raise typer.Exit(sshs.serve(machine, streams, deadline=deadline))
    program = process.find("ssh", package="openssh-client")
    path = sshs.configure(machine, deadline=deadline)
    if config:
        render.put(path.read_text().rstrip("\n"))
        return
    command = words if len(words) == 1 else (shlex.join(words),) if words else ()
    process.replace([program, "-F", path, machine.name, *command])
