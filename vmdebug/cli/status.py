"""`vmdebug status`: shows running VMs."""

from __future__ import annotations

from vmdebug.cli import render, verb

app = verb.new_app()

COLUMNS = ("name", "status", "accel", "pid", "release", "guest")


@app.command(
    epilog=verb.examples("vmdebug status", "vmdebug status base-nixos", "vmdebug status --json | jq"),
)
def status(name: verb.VmName = None, *, as_json: verb.Json = False) -> None:
    """Show running VMs.

    The status is halted (at the reset vector), running, paused, panicked, failed (QEMU cannot continue the
    guest: qemu.log has the reason), exited, or lost (its run directory was removed). A VM that has exited is
    shown once, and then removed.
    """
    from vmdebug import vm
    from vmdebug.cli import facts

    if name is not None:
        machine = vm.find(name)
        one = machine.facts()
        if as_json:
            render.put_json([one])
        else:
            render.put_facts(facts.for_people(machine, one))
        return
    found = [each.facts() for each in facts.every_vm()]
    if as_json:
        render.put_json(found)
    elif found:
        rows = [[str(each[column] or "") for column in COLUMNS] for each in found]
        render.put_table([column.upper() for column in COLUMNS], rows)
    else:
        render.tell("no VM is running; `vmdebug start` starts one")
