"""`vmdebug replay`: replays a recorded guest up to a position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import render, verb

if TYPE_CHECKING:
    from vmdebug.vm import Vm

app = verb.new_app()


def complete_recording(incomplete: str) -> list[str]:
    """Return the names of recordings, for shell completion."""
    import contextlib

    from vmdebug.errors import VmdebugError
    from vmdebug.recording import store

    with contextlib.suppress(VmdebugError):
        return [each.name for each in store.every() if each.name.startswith(incomplete)]
    return []


@app.command(
    epilog=verb.examples(
        "vmdebug replay",
        "vmdebug replay crash.vmdrec --to end",
        "vmdebug replay crash.vmdrec --to 'Run /init'    # a text on the console",
        "vmdebug replay crash.vmdrec --to 2.5s           # the kernel's time",
    ),
)
def replay(
    recording: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="The recording: a path, or a name of `vmdebug recording list`. By default the newest.",
            autocompletion=complete_recording,
        ),
    ] = None,
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="POSITION",
            help="Where to stop: `start`, `end`, `failure` (the first kernel trouble on the console, else the"
            " end), an instruction count, a time such as 2.5s, or a text on the console.",
        ),
    ] = "failure",
    name: Annotated[
        str | None,
        typer.Option(metavar="N", help="Name of the VM; by default that of the guest, and -replay."),
    ] = None,
    as_json: verb.Json = False,
) -> None:
    """Replay a recorded guest, and leave it stopped at a position.

    The VM is like any other for `attach`, `dmesg`, `drgn` and scripts, but it only does what was recorded: no
    command runs in it, and nothing can be typed.
    """
    from vmdebug import replaying

    with render.progress() as report:
        machine = replaying.start(recording, to=to, name=name, bound=True, report=report)
    with machine:
        _show(machine, as_json=as_json)
        render.flush()
        machine.keep()


def _show(machine: Vm, *, as_json: bool) -> None:
    from vmdebug import replaying
    from vmdebug.cli import facts

    found = {**machine.facts(), "owner": None}
    if as_json:
        render.put_json(found)
        return
    about, here = replaying.needed(machine), replaying.position(machine)
    shown = facts.for_people(machine, found)
    shown["position"] = f"{here.describe()}\n{here.text}".rstrip()
    if not about.complete:
        shown["recording"] = "its QEMU was killed, so the last moments before the end are missing"
    render.tell_facts(shown)
    render.tell(
        "\nnext:\n"
        f"  vmdebug attach {machine.name}       # GDB at this position\n"
        f"  vmdebug stop {machine.name}"
    )
