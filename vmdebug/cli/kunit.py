"""`vmdebug kunit`: runs KUnit suites in a guest, and prints their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import ktests_output, options, render, trouble, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.deadline import Deadline
    from vmdebug.vm import Vm

app = verb.new_app()


@app.command(
    epilog=verb.examples(
        "vmdebug kunit base list-test",
        "vmdebug kunit base ./my_test.ko",
        "vmdebug kunit base --list",
        "vmdebug start . --append kunit.filter_glob='ext4*' && vmdebug kunit linux --boot",
    ),
)
def kunit(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The VM.", autocompletion=verb.complete_vm)],
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITE…",
            help="Suites, modules with suites, or module files, FILE.ko; by default all suites in debugfs.",
        ),
    ] = None,
    *,
    boot: Annotated[
        bool,
        typer.Option(
            "--boot", help="Print the results of what has run since the guest booted, from its kernel log."
        ),
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Print the suites.")] = False,
    allow: options.AllowTrouble = None,
    timeout: ktests_output.Timeout = ktests_output.TIMEOUT_SECONDS,
    as_json: verb.Json = False,
) -> None:
    """Run KUnit suites in a guest, and print their results.

    Loads the modules of suites, or runs them again (Linux 6.8), and reads the results from debugfs. Suites
    that are built in have run at boot. --boot needs no shell in the guest: it also tells what ran before
    a panic. Kernel trouble counts as a failure of the test that ran. Exits with status 1 if a test failed.
    """
    trouble.check_kinds(allow or ())
    if boot and listed:
        raise UsageError("--boot and --list exclude each other", hint="give only one of them")
    from vmdebug import vm
    from vmdebug.deadline import Deadline
    from vmdebug.ktests import kunit as runner

    machine, deadline = vm.find(name), Deadline.after(timeout)
    kinds = frozenset(allow or ())
    if listed:
        _list(machine, deadline, as_json=as_json)
        return
    with render.progress() as report:
        if boot:
            results = runner.boot(machine, suites or (), report=report, deadline=deadline)
            for point in () if as_json else results.points:
                ktests_output.put_point("", point, kinds)
        else:
            results = runner.collect(
                machine,
                suites or (),
                ended=lambda point: None if as_json else ktests_output.put_point("", point, kinds),
                report=report,
                deadline=deadline,
            )
    ktests_output.finish(results.allowing(kinds), machine.state.spec.kernel, as_json=as_json)


def _list(machine: Vm, deadline: Deadline, *, as_json: bool) -> None:
    from vmdebug.ktests import kunit as runner

    found = runner.known(machine, deadline=deadline)
    facts = [
        {
            "suite": suite.name,
            "module": "" if suite.module is None else suite.module.name,
            "loaded": suite.loaded,
        }
        for suite in found
    ]
    if as_json:
        render.put_json(facts)
    else:
        rows = [(each["suite"], each["module"] or "-", "yes" if each["loaded"] else "no") for each in facts]
        render.put_table(("SUITE", "MODULE", "LOADED"), [[str(cell) for cell in row] for row in rows])
