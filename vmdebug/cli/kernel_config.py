"""`vmdebug kernel config`: merges configuration fragments and checks the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.deadline import BUILD_SECONDS, Deadline
from vmdebug.errors import BuildError, UsageError

if TYPE_CHECKING:
    from vmdebug.sources.configuration.configure import Configured
    from vmdebug.sources.configuration.lacks import Checked

EPILOG = verb.examples(
    "vmdebug kernel config --source ~/src/linux --base tinyconfig -f vm-boot -f gdb -o ~/build",
    "vmdebug kernel config --source ~/src/linux --base running -f nixos-boot --builtin -o ~/build",
    "vmdebug kernel config --source ~/src/linux --from vng -f gdb -o ~/build",
    "vmdebug kernel config --check ~/src/linux/.config",
)

Source = Annotated[
    Path | None,
    typer.Option(
        metavar="TREE", help="Kernel source tree or tarball; by default Debian's linux-source package."
    ),
]
Base = Annotated[
    str,
    typer.Option(
        "--base",
        "--from",
        metavar="NAME|FILE",
        help="Base configuration: a make target (defconfig, tinyconfig, allnoconfig), a .config,"
        " `running`, or `vng` for virtme-ng's with ext4.",
    ),
]
Fragments = Annotated[
    list[str] | None,
    typer.Option(
        "--fragment",
        "-f",
        metavar="FRAGMENT|FILE",
        help="Fragment to merge: one of vmdebug's by name, or a file. Repeatable; the last one wins.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Directory for .config: one for `make O=DIR`, or TREE."
    ),
]
Builtin = Annotated[
    bool, typer.Option("--builtin", help="Turn modules into built-ins; list those that cannot be.")
]
Check = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|DIR",
        help="Check whether a .config can boot a NixOS VM and be debugged; change nothing.",
    ),
]


def config(
    *,
    source: Source = None,
    base: Base = "allnoconfig",
    fragment: Fragments = None,
    output: Output = None,
    builtin: Builtin = False,
    check: Check = None,
    as_json: verb.Json = False,
) -> None:
    """Merge configuration fragments, and check that every option they ask for is set.

    The kernel's own tools merge them. Lists the options that could not be set, and why; then the exit
    status is 1. On a base that turns off everything (allnoconfig, tinyconfig) the fragments that the
    wanted ones depend on are added.
    """
    if check is not None:
        from vmdebug.sources.configuration import requirements

        judge(check, requirements.NIXOS_PURPOSES, as_json=as_json)
        return
    if output is None:
        raise UsageError(
            "the directory for the configuration is missing", hint="give one for `make O=`, or TREE: -o DIR"
        )
    from vmdebug.sources.configuration import configure

    with render.progress() as report:
        made = configure.configure(
            base,
            fragment or [],
            source=source,
            directory=output.expanduser().resolve(),
            builtin=builtin,
            report=report,
            deadline=Deadline.after(BUILD_SECONDS),
        )
    _tell(made, as_json=as_json)


def _tell(made: Configured, *, as_json: bool) -> None:
    """Print the configuration that was made; raise if options could not be set."""
    if as_json:
        _put_json(made)
    else:
        _show(made)
    if made.failed:
        raise BuildError(
            f"{len(made.failed)} of {made.asked} options could not be set",
            hint="the configuration was written without them: fix the fragment, or enable what it depends on",
            detail="\n".join(map(str, made.failed)),
        )


def _put_json(made: Configured) -> None:
    import msgspec

    facts = msgspec.structs.asdict(made)
    facts["dropped"] = [msgspec.structs.asdict(option) for option in made.dropped]
    render.put_json(facts)


def _show(made: Configured) -> None:
    added = f"\nadded, because the others depend on them: {' '.join(made.added)}" if made.added else ""
    stuck = made.asked - len([each for each in made.dropped if each.fragment != "--builtin"])
    facts = {
        "config": str(made.config),
        "source": f"{made.source}  {made.version}",
        "base": made.base,
        "fragments": f"{' '.join(made.fragments) or 'none'}{added}",
        "options": f"{stuck} of {made.asked} set as wanted; {made.modules} modules",
    }
    wishes = [str(option) for option in made.dropped if option.wish]
    if wishes:
        facts["not set"] = "\n".join(wishes)
    if made.notes:
        facts["note"] = "\n".join(made.notes)
    render.tell_facts(facts | {"next": made.make})


def judge(path: Path, purposes: tuple[str, ...], *, as_json: bool) -> None:
    """Print whether a .config is suitable for a guest.

    Args:
        path: The .config.
        purposes: What it must be suitable for.
        as_json: Whether to print it as JSON.

    Raises:
        UsageError: it is no .config.
        typer.Exit: with status 1, if it is not suitable for all of them.
    """
    import msgspec

    from vmdebug.sources.configuration import lacks

    lines = lacks.check(path.expanduser())
    if as_json:
        render.put_json(
            {"config": path, "lines": [{**msgspec.structs.asdict(x), "met": x.met} for x in lines]}
        )
    else:
        lacking = [line for line in lines if not line.met]
        if lacking:
            head = ("OPTION", "IS", "WANTED", "BY", "FOR", "FRAGMENT")
            render.put_table(head, [_row(line) for line in lacking])
            render.put("")
        render.put_facts({each: _verdict(each, lines) for each in dict.fromkeys(x.purpose for x in lines)})
    if any(line.purpose in purposes and not line.met for line in lines):
        raise typer.Exit(BuildError.exit_status)


def _row(line: Checked) -> tuple[str, ...]:
    add_fragment = f"-f {line.add_fragment}" if line.add_fragment else ""
    return (line.option, line.found, line.wanted, line.purpose, line.why, add_fragment)


def _verdict(purpose: str, lines: tuple[Checked, ...]) -> str:
    own = [line for line in lines if line.purpose == purpose]
    lacking = [line for line in own if not line.met]
    if not lacking:
        return f"ok: {len(own)} options"
    fragments = dict.fromkeys(line.add_fragment for line in lacking if line.add_fragment)
    wanted = " ".join(f"-f {name}" for name in fragments)
    return f"{len(lacking)} of {len(own)} options missing; vmdebug kernel config … {wanted}"
