"""`vmdebug kernel`: builds, configures and checks kernels, and makes their GDB scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from vmdebug.cli import kernel_config, options, render, verb
from vmdebug.deadline import BUILD_SECONDS, Deadline

if TYPE_CHECKING:
    from vmdebug.sources.check import Row

_STATE_WIDTH = len("warning  ")

app = verb.new_app()


@app.callback()
def kernel() -> None:
    """Build, configure and check kernels; make their GDB scripts."""


app.command(epilog=kernel_config.EPILOG)(kernel_config.config)


@app.command(
    epilog=verb.examples("vmdebug kernel build", "vmdebug kernel build --source ~/src/linux"),
)
def build(
    *,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Kernel source tree or tarball; by default Debian's linux-source package."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", metavar="N", min=1, help="Number of parallel jobs; by default one for each CPU."
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print progress only, not the result.")
    ] = False,
    as_json: verb.Json = False,
) -> None:
    """Build the small debuggable kernel of the guest `builtin`.

    Builds out of tree in the user's cache, once for each source, configuration and compiler. An
    interrupted build continues where it stopped.
    """
    import msgspec

    from vmdebug.cli.facts import short
    from vmdebug.sources import builtin

    with render.progress() as report:
        built = builtin.build(source, jobs=jobs, report=report, deadline=Deadline.after(BUILD_SECONDS))
    if as_json:
        render.put_json(msgspec.structs.asdict(built))
    elif not quiet:
        render.tell_facts(
            {
                "kernel": f"{short(built.image)}  {built.release}",
                "symbols": short(built.vmlinux),
                "source": short(built.origin),
                "took": f"{built.cpu_seconds:.0f} s of CPU for {built.objects} objects",
            }
        )


class Scripts(TyperCommand):
    """A command with options for nix that typer cannot parse."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after `options.rewritten`."""
        return super().parse_args(ctx, options.rewritten(args))


@app.command(
    cls=Scripts,
    epilog=verb.examples(
        "vmdebug kernel scripts ~/src/linux",
        "vmdebug kernel scripts .#base-nixos",
        "vmdebug kernel scripts /boot/vmlinuz --source ~/src/linux-6.1",
    ),
)
def scripts(
    guest: options.Guest = None,
    *,
    kernel: options.Kernel = None,
    vmlinux: options.Vmlinux = None,
    source: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Kernel source or build tree, if none is found automatically."),
    ] = None,
    override_input: options.OverrideInput = None,
    impure: options.Impure = False,
    nix_arg: options.NixArg = None,
    as_json: verb.Json = False,
) -> None:
    """Make the GDB scripts (lx-…) of any kernel loadable.

    Stores them in the user's cache under the kernel's build-id; every `start` of that kernel finds
    them. The kernel's makefiles generate the missing parts: in a moment if the build tree exists, in a
    minute from the source.
    """
    import msgspec

    from vmdebug import sources
    from vmdebug.paths import absolute

    wanted = options.given(
        guest,
        kernel=kernel,
        vmlinux=vmlinux,
        nix_args=options.nix_words(override_input, impure, nix_arg),
    )
    with render.progress() as report:
        made = sources.gdb_scripts(
            wanted,
            source=absolute(str(source)) if source is not None else None,
            report=report,
            deadline=Deadline.after(BUILD_SECONDS),
        )
    if as_json:
        render.put_json(msgspec.structs.asdict(made))
        return
    build_id = f"  build-id {made.build_id}" if made.build_id else ""
    render.tell_facts(
        {"scripts": str(made.directory), "of": f"{made.release}{build_id}", "made from": made.how}
    )


@app.command(
    cls=Scripts,
    epilog=verb.examples(
        "vmdebug kernel check",
        "vmdebug kernel check .#base-nixos --kernel ~/src/linux",
        "vmdebug kernel check /boot/vmlinuz --vmlinux ~/vmlinux --json",
        "vmdebug kernel check ~/build/.config",
    ),
)
def check(
    guest: options.Guest = None,
    *,
    kernel: options.Kernel = None,
    vmlinux: options.Vmlinux = None,
    gdb_scripts: options.GdbScripts = None,
    debuginfod: options.Debuginfod = None,
    override_input: options.OverrideInput = None,
    impure: options.Impure = False,
    nix_arg: options.NixArg = None,
    as_json: verb.Json = False,
) -> None:
    """Check that image, vmlinux, scripts and modules match, without starting anything.

    Exits with status 4 if they do not. For a .config, or a tree that is not built yet, checks whether the
    kernel could boot to vmdebug's busybox shell and be debugged; exits with status 1 if not.
    """
    import msgspec

    from vmdebug import sources
    from vmdebug.sources.configuration import dotconfig, requirements

    configuration = dotconfig.find(guest) if guest is not None and kernel is None else None
    if configuration is not None:
        kernel_config.judge(configuration, requirements.REQUIRED_PURPOSES, as_json=as_json)
        return
    from vmdebug.errors import MismatchError
    from vmdebug.sources import check as checking

    wanted = options.given(
        guest,
        kernel=kernel,
        vmlinux=vmlinux,
        gdb_scripts=gdb_scripts,
        debuginfod=debuginfod,
        nix_args=options.nix_words(override_input, impure, nix_arg),
        force=True,
    )
    with render.progress() as report:
        spec = sources.resolve(wanted, report=report, deadline=Deadline.after(BUILD_SECONDS))
        rows = checking.table(spec)
    if as_json:
        render.put_json({"guest": spec.guest, "rows": [msgspec.structs.asdict(row) for row in rows]})
    else:
        render.put_facts({row.subject: _in_words(row) for row in rows})
    if any(row.state == "bad" for row in rows):
        raise typer.Exit(MismatchError.exit_status)


def _in_words(row: Row) -> str:
    """Return the state of a row and what was found, with the reason on the next line."""
    first = f"{row.state:<{_STATE_WIDTH}}{row.found}"
    return f"{first}\n{'':{_STATE_WIDTH}}{row.reason}" if row.reason else first
