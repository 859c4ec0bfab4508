"""`vmdebug kselftest`: builds kselftests and runs them in a guest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import ktests_output, options, render, trouble, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.deadline import Deadline
    from vmdebug.guest import Kernel

app = verb.new_app()


@app.command(
    epilog=verb.examples(
        "vmdebug kselftest base timers",
        "vmdebug kselftest base timers:nanosleep futex --test-timeout 300",
        "vmdebug kselftest base --list",
        "vmdebug kselftest base net/forwarding --source ~/linux --json",
    ),
)
def kselftest(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The running VM.", autocompletion=verb.complete_vm)
    ],
    tests: Annotated[
        list[str] | None,
        typer.Argument(metavar="COLLECTION[:TEST]…", help="The collections, or single tests of them."),
    ] = None,
    *,
    listed: Annotated[
        bool,
        typer.Option("--list", help="Print the collections; with COLLECTION, build it and print its tests."),
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option(metavar="TREE", help="The kernel's source; by default that of the kernel that runs."),
    ] = None,
    test_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0,
            help="Seconds for each test, 0 for no limit; by default as its `settings` say, or 45.",
        ),
    ] = None,
    allow: options.AllowTrouble = None,
    timeout: ktests_output.Timeout = ktests_output.TIMEOUT_SECONDS,
    as_json: verb.Json = False,
) -> None:
    """Build kselftests and run them in a guest.

    Builds them from the source of the kernel that runs, in the cache, copies them into the guest, and runs
    one after the other: by the kernel's run_kselftest.sh where the guest has what that needs, else directly.
    Kernel trouble counts as a failure of the test that ran. Exits with status 1 if a test point failed.
    """
    trouble.check_kinds(allow or ())
    if not tests and not listed:
        raise UsageError(
            "no kselftest to run", hint=f"vmdebug kselftest {name} --list prints the collections"
        )
    from vmdebug import vm
    from vmdebug.deadline import Deadline

    machine, deadline = vm.find(name), Deadline.after(timeout)
    if listed:
        _list(machine.state.spec.kernel, tests or (), source, deadline, as_json=as_json)
        return
    from vmdebug.ktests import kselftest as runner

    kinds = frozenset(allow or ())
    with render.progress() as report:
        results = runner.collect(
            machine,
            tests or (),
            source=source,
            test_timeout=test_timeout,
            ended=lambda above, point: None if as_json else ktests_output.put_point(above, point, kinds),
            report=report,
            deadline=deadline,
        )
    ktests_output.finish(results.allowing(kinds), machine.state.spec.kernel, as_json=as_json)


def _list(
    kernel: Kernel, words: Sequence[str], source: Path | None, deadline: Deadline, *, as_json: bool
) -> None:
    from vmdebug.ktests import kselftest, selftests

    tree = selftests.source_of(kernel) if source is None else selftests.check_source(source)
    if not words:
        names = list(selftests.known(tree))
    else:
        wanted = [*kselftest.parse(words)]
        with render.progress() as report:
            built = selftests.build(tree, wanted, kernel, report=report, deadline=deadline)
        names = [f"{each.name}:{test}" for each in built for test in each.tests]
    if as_json:
        render.put_json(names)
    else:
        render.put("\n".join(names))
