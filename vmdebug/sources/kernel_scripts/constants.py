"""`constants.py` of the kernel's GDB scripts, made by the kernel's own makefiles.

Two ways. A configured tree lets a directory outside of it be built as an external
module (Documentation/kbuild/modules.rst): with the scripts' own Makefile in it, one
second and nothing written to the tree, and a Nix kernel's `dev` output is made for
just that. A bare source with a configuration is prepared in a directory of its own
first (`make O=… scripts_gdb`), which takes a minute.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest import Kernel
from vmdebug.progress import Report, Step
from vmdebug.sources import kbuild, kernel_source
from vmdebug.sources.kernel_scripts import script_parts

_NAME = "constants.py"
_ALWAYS = f"\nalways-y += {_NAME}\n"
"""Up to Linux 5.10 and some later ones it is extra-y, which nobody makes for an external module."""
_MADE = re.compile(r"^  [A-Z0-9]+(?: \[M\])?\s+(\S.*)$")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel's source with its configuration.

    Args:
        path: A directory, or a tarball.
        config: The text of its `.config`; None where only the source is known.
    """

    path: Path
    config: bytes | None


def by_module_build(template: Path, build: Path, *, what: str, report: Report, deadline: Deadline) -> str:
    """Return `constants.py` as a configured tree makes it for somebody outside.

    Args:
        template: `constants.py.in`, with its Makefile beside it.
        build: The tree: `make` or `make modules_prepare` has run in it.
        what: The step's name.
        report: Told what make does.
        deadline: When make is ended.

    Raises:
        HostError: make or the compiler is not installed.
        BuildError: make failed.
        DeadlineError: it took too long.
    """
    _need(("make", "make"), ("gcc", "gcc"))
    config = build / ".config"
    text = config.read_bytes() if config.is_file() else b""
    # In the user's cache a blank may be on the way, which kbuild does not bear.
    with tempfile.TemporaryDirectory(prefix="vmdebug-gdb-") as scratch:
        directory = Path(scratch)
        shutil.copyfile(template, directory / template.name)
        makefile = (template.parent / "Makefile").read_text()
        (directory / "Kbuild").write_text(makefile + _ALWAYS)
        # Without CONFIG_MODULES the target `modules` is refused; the directory is what it would go to.
        goal = "modules" if b"\nCONFIG_MODULES=y\n" in text else str(directory)
        # Without MO Linux since 6.13 would write into a tree that is not where it was configured.
        argv = ["make", "-C", str(build), f"M={directory}", f"MO={directory}", *_compiler(text), goal]
        return _run([argv], directory / _NAME, what, report, deadline)


def by_source(source: Path, config: bytes | None, *, what: str, report: Report, deadline: Deadline) -> str:
    """Return `constants.py` as a bare source makes it with a configuration.

    Args:
        source: A clean source; it is not written to.
        config: The text of the `.config`.
        what: The step's name.
        report: Told what make does.
        deadline: When make is ended.

    Raises:
        UsageError: there is no configuration.
        HostError: a program is not installed.
        BuildError: make failed.
        DeadlineError: it took too long.
    """
    if config is None:
        raise UsageError(
            f"no configuration for {source}, and constants.py depends on it",
            hint="give the tree that the kernel was built in with --source",
        )
    kbuild.check_tools()
    with tempfile.TemporaryDirectory(prefix="vmdebug-gdb-") as scratch:
        directory = Path(scratch)
        (directory / ".config").write_bytes(config)
        jobs = f"-j{kbuild.jobs()}"
        make = ["make", "-C", str(source), f"O={directory}", jobs, *_compiler(config)]
        # Another compiler has other options; what it lacks is settled here and not asked for.
        steps = [[*make, "olddefconfig"], [*make, "scripts_gdb"]]
        return _run(steps, directory / "scripts/gdb/linux" / _NAME, what, report, deadline)


def clean(source: Source, *, report: Report, deadline: Deadline) -> Path:
    """Return the directory of a source that can be built elsewhere, unpacked if it is a tarball.

    Raises:
        UsageError: it is no kernel's source, or has been built in.
        HostError: there is no space for it.
        DeadlineError: it took too long.
    """
    return kernel_source.unpacked(kernel_source.look(source.path), report=report, deadline=deadline)


def refuse_reduced(text: str, kernel: Kernel) -> None:
    """Make sure that the kernel's debugging information is whole, by what `constants.py` says of it.

    Raises:
        UsageError: it was built with CONFIG_DEBUG_INFO_REDUCED, which vmlinux-gdb.py refuses too.
    """
    if re.search(r"^LX_CONFIG_DEBUG_INFO_REDUCED = 1$", text, re.MULTILINE):
        raise script_parts.reduced(kernel.origin)


def _run(steps: Sequence[Sequence[str]], made: Path, what: str, report: Report, deadline: Deadline) -> str:
    def line(text: str) -> None:
        if found := _MADE.match(text):
            report(Step(what, note=found[1]))

    report(Step(what))
    for argv in steps:
        done = process.run(argv, env=kbuild.clean_environment(), deadline=deadline, check=False, on_line=line)
        if done.status != 0:
            raise BuildError(
                f"constants.py was not made: make ended with status {done.status}",
                hint="build the kernel with CONFIG_GDB_SCRIPTS=y, or give its source with --source",
                detail=f"{process.shell_line(argv)}\n{process.tail(done.stderr)}",
            )
    if not made.is_file():
        raise BuildError(
            f"make ended well, but made no {made.name}",
            hint="has this kernel scripts/gdb? it came with Linux 4.0",
            detail="\n".join(process.shell_line(argv) for argv in steps),
        )
    return made.read_text()


def _compiler(config: bytes) -> tuple[str, ...]:
    return ("LLVM=1",) if b"\nCONFIG_CC_IS_CLANG=y\n" in config else ()


def _need(*programs: tuple[str, str]) -> None:
    for program, package in programs:
        process.find(program, package=package)
