"""`vmdebug drgn`: drgn on a VM."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmdebug.cli import dumped, options, render, verb
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from drgn import Program, StackTrace

    from vmdebug.guest import Kernel

CONNECT_SECONDS = 30.0
"""How long QEMU may take to answer; other commands to it may have to end first."""


class Drgn(verb.WithTail):
    """`drgn`: the words after `--` are for the script."""

    tail_metavar = "ARGS"


app = verb.new_app()


@app.command(
    cls=Drgn,
    epilog=verb.examples(
        "vmdebug drgn",
        "vmdebug drgn base-nixos -e 'print(len(list(for_each_task())))'",
        "vmdebug drgn builtin -e 'print(stack_trace(1))'",
        "vmdebug drgn builtin -e 'print(task_stacks())'",
        "vmdebug drgn builtin tasks.py -- --all",
        "vmdebug drgn ./vmcore",
    ),
)
def drgn(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME|FILE", help="The VM, or a dump.", autocompletion=verb.complete_vm),
    ] = None,
    script: Annotated[
        Path | None, typer.Argument(metavar="SCRIPT", help="Python script to run, with `prog` defined.")
    ] = None,
    *,
    expression: Annotated[
        str | None, typer.Option("-e", metavar="CODE", help="Python statement to run instead of a script.")
    ] = None,
    vmlinux: dumped.Vmlinux = None,
    force: options.Force = False,
) -> None:
    """Run drgn on a VM or a dump: a prompt, a script or a statement.

    `prog` is the guest's kernel, with the symbols of its vmlinux and its modules, which are proven to be
    those in memory. The guest is not stopped. All helpers of drgn can be used, and
    `stack_trace(TASK or PID)`, which also shows the tasks on the CPUs of a stopped guest, and
    `task_stacks()`, the text of all tasks with their stacks.

    Needs drgn: pip install 'vmdebug[drgn]'.
    """
    from vmdebug import extras

    if script is not None and expression is not None:
        raise UsageError("SCRIPT and -e exclude each other", hint="give one of them")
    # What is imported stays: to look for garbage in it, here and at the end, takes a fifth of the time to the
    # first answer.
    gc.disable()
    extras.DRGN.need("vmdebug drgn")
    if script is not None and not script.is_file():
        raise UsageError(f"there is no script {script}", hint="give a Python file")
    from vmdebug.drgn_program import plugins

    file = dumped.path(name)
    if file is None:
        dumped.refuse_vmlinux(vmlinux)
        with plugins.named():
            program, ours = _of_vm(name, force=force)
    else:
        with plugins.named():
            (program, _), kernel = dumped.opened(file, vmlinux, what="vmdebug drgn", force=force)
        ours = _helpers(program, kernel, program.stack_trace, lambda cpu: _of_cpu_in_dump(program, cpu))
    gc.freeze()
    gc.enable()
    _run(program, ours, script, expression, list(verb.tail(context)))


def _of_vm(name: str | None, *, force: bool) -> tuple[Program, dict[str, Any]]:
    from vmdebug import vm
    from vmdebug.drgn_program import live, stacks

    machine = vm.find(name)
    with render.step(render.SYMBOLS):
        program, notes = live.open_program(machine, force=force, timeout=CONNECT_SECONDS)
    for note in notes:
        render.tell(f"note: {note}")
    ours = stacks.Stacks(program, machine)
    return program, _helpers(program, machine.state.spec.kernel, ours, ours.of_cpu)


def _of_cpu_in_dump(program: Program, cpu: int) -> StackTrace:
    from drgn.helpers.linux.sched import cpu_curr

    return program.stack_trace(cpu_curr(program, cpu))


def _helpers(
    program: Program,
    kernel: Kernel,
    stack_trace: Callable[..., StackTrace],
    of_cpu: Callable[[int], StackTrace],
) -> dict[str, Any]:
    """Return what the user's code has beside drgn's helpers."""
    listing: list[Callable[[], str]] = []

    def task_stacks() -> str:
        """Return all tasks with their pids, names and stacks, as text."""
        if not listing:
            from vmdebug.drgn_program.task_stacks import TaskStacks

            listing.append(TaskStacks(program, kernel, of_cpu))
        return listing[0]()

    return {"stack_trace": stack_trace, "task_stacks": task_stacks}


def _run(
    program: Program, ours: dict[str, Any], script: Path | None, expression: str | None, words: list[str]
) -> None:
    """Run the script, the statement, standard input or a prompt, as the program `drgn` does."""
    import drgn as library

    library.set_default_prog(program)
    if script is not None:
        _run_script(script, program, ours, words)
        return
    from drgn import cli

    if expression is None and sys.stdin.isatty():
        banner = (
            "\n>>> stack_trace(TASK or PID)  # also of the tasks on the CPUs"
            "\n>>> print(task_stacks())      # all tasks with their stacks"
        )
        cli.run_interactive(program, lambda text: text + banner, lambda names: {**names, **ours})
        return
    source = sys.stdin.read() if expression is None else expression
    origin = "<stdin>" if expression is None else "<string>"
    sys.argv = ["-e" if expression is not None else "", *words]
    sys.path.insert(0, "")
    _shown(lambda: exec(compile(source, origin, "exec"), {**cli.default_globals(program), **ours}))  # noqa: S102


def _run_script(script: Path, program: Program, ours: dict[str, Any], words: list[str]) -> None:
    import runpy

    sys.argv = [str(script), *words]
    sys.path.insert(0, os.fspath(script.resolve().parent))
    _shown(lambda: runpy.run_path(str(script), init_globals={"prog": program, **ours}, run_name="__main__"))


def _shown(run: Callable[[], object]) -> None:
    """Run the user's code, and print its error as Python does, without the frames of vmdebug.

    Raises:
        typer.Exit: the code failed; with its own status, if it called sys.exit.
    """
    import traceback

    try:
        run()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            raise typer.Exit(error.code or 0) from None
        render.tell(str(error.code))
        raise typer.Exit(1) from None
    except BrokenPipeError:
        raise
    except Exception as error:
        trace = error.__traceback__
        ours = str(Path(__file__).parent)
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith((ours, "<frozen runpy>")):
            trace = trace.tb_next
        render.tell("".join(traceback.format_exception(type(error), error, trace)).rstrip())
        raise typer.Exit(1) from error
