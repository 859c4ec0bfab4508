"""`make` in a developer's own kernel tree, for `start --build` and `restart --build`.

A tree is built with the compiler command that its objects were built with: with another command kbuild would
compile all of them again (if_changed in scripts/Kbuild.include). So ccache is used in a tree that was built
with it, and in a tree without objects.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from vmdebug import arch, cache, process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest_options import GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.process import Completed
from vmdebug.progress import Report, Step
from vmdebug.sources import kbuild, naming
from vmdebug.sources.configuration import dotconfig, new_options, requirements
from vmdebug.sources.configuration.requirements import Need
from vmdebug.spelling import option

_COMMAND = re.compile(r"^(?:saved)?cmd_\S+ := (.*?)\s-", re.MULTILINE)
_MAKES_OWN = re.compile(r"^make(?:\[\d+\])?: ")
_ERROR = re.compile(r"\berror: |undefined reference|^ERROR: ")
_SHOWN = 30


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A built tree.

    Args:
        tree: The directory in which make ran.
        objects: How many objects were compiled.
        seconds: How long make ran.
        compiler: The compiler command with the reason for it, for the user.
        warnings: The messages of compiler and linker.
        new_options: The options that were new in the source, with the defaults that they got.
    """

    tree: Path
    objects: int
    seconds: float
    compiler: str
    warnings: str = ""
    new_options: dict[str, str] = {}


def tree_of(options: GuestOptions) -> Path:
    """Return the tree of the kernel that a guest boots.

    Raises:
        UsageError: the kernel is not built by make in a tree.
    """
    if options.kernel is not None:
        path = absolute(options.kernel)
        if or_false(path.is_dir):
            return path
        raise UsageError(
            f"--build: {option('kernel', options.kernel)} is not a directory that make builds in",
            hint="give the directory in which make ran, not the image",
        )
    guest = naming.parse(options.source)
    if guest.kind == "tree":
        return Path(guest.location)
    raise UsageError(
        f"--build: the kernel of {options.source} is not built by make in a tree",
        hint=f"give the tree: {option('kernel', 'TREE')}; `vmdebug kernel build` builds the builtin kernel",
    )


def needs_of(options: GuestOptions) -> tuple[Need, ...]:
    """Return what a guest needs of the kernel that is built for it."""
    if naming.parse(options.source).kind in ("flake", "runner"):
        return requirements.RUNNER
    return requirements.own(arch.native())


def build(
    tree: Path,
    *,
    needs: Iterable[Need] = (),
    jobs: int | None = None,
    report: Report,
    deadline: Deadline,
) -> Built:
    """Run `make` in a tree. If its .config is older than its source, the new options get their defaults.

    Args:
        tree: The build directory: the source, or the one of `make O=`.
        needs: See `needs_of`.
        jobs: How many compilers to run at once; None is one for each CPU.
        report: Receives each object.
        deadline: When to stop; the next make continues.

    Raises:
        UsageError: make cannot run in it, it belongs to vmdebug, or a boot needs another value of a new
            option than its default.
        HostError: a program is missing.
        BuildError: make failed; the detail has the compiler's errors.
        DeadlineError: it took too long.
    """
    _check_buildable(tree)
    env = kbuild.environment()
    variables, compiler = compiler_of(tree, env)
    objects = kbuild.ObjectCounter(0, None, report)
    begun = time.monotonic()

    def make(*words: str) -> tuple[str, ...]:
        return kbuild.argv(tree, tree, *variables, *words)

    def compile_(more: Mapping[str, str]) -> Completed:
        argv = make(f"-j{jobs or kbuild.jobs()}")
        return process.run(argv, env={**env, **more}, deadline=deadline, check=False, on_line=objects.line)

    done = compile_(new_options.STOP)
    taken: dict[str, str] = {}
    if new_options.STOPPED in done.stderr:
        report(Step(kbuild.BUILDING, note="new options"))
        taken = new_options.take(tree, needs, make=make, env=env, deadline=deadline)
        report(Step("new options", note=", ".join(f"{name}={value}" for name, value in taken.items())))
        done = compile_({})
    said = [line for line in done.stderr.splitlines() if not _MAKES_OWN.match(line)]
    if done.status != 0:
        raise BuildError(
            f"{tree} could not be built: make ended with status {done.status}",
            hint=next((line for line in said if _ERROR.search(line)), "see the output of make below"),
            detail=f"{process.shell_line(done.argv)}\n"
            + "\n".join(_around_first_error(said) or [process.tail(done.stdout)]),
        )
    return Built(
        tree=tree,
        objects=objects.done,
        seconds=time.monotonic() - begun,
        compiler=compiler,
        warnings="\n".join(said),
        new_options=taken,
    )


def _check_buildable(tree: Path) -> None:
    process.find("make", package="make")
    if tree.resolve().is_relative_to(cache.directory("kernel").resolve()):
        raise UsageError(
            f"{tree} is the build directory of the builtin kernel, which only `vmdebug kernel build` changes",
            hint="give your own tree; `vmdebug kernel build --source TREE` builds another builtin kernel",
        )
    for needed, hint in (
        ("Makefile", "give the directory in which `make` runs"),
        (
            ".config",
            f"make one: vmdebug kernel config --source {tree} --base tinyconfig -f vm-boot -f gdb -o {tree}",
        ),
    ):
        if not or_false((tree / needed).is_file):
            raise UsageError(f"{tree} cannot be built in: there is no {needed}", hint=hint)


def compiler_of(tree: Path, env: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Return make's variables for the compiler, and the reason for the choice, for the user."""
    before = _recorded(tree)
    if before:
        through = "through ccache" if "ccache" in before else "without ccache"
        said = f"{before}: {through}, as the tree was built before; another command would rebuild everything"
        return (() if before == "gcc" else (f"CC={before}",)), said
    options = dotconfig.options((tree / ".config").read_text(errors="replace"))
    clang = options.get("CONFIG_CC_IS_CLANG") == "y"
    own = clang or any(name in env for name in ("LLVM", "CC", "CROSS_COMPILE"))
    if own:
        return (("LLVM=1",) if clang and "LLVM" not in env else ()), "as configured"
    if shutil.which("ccache", path=env.get("PATH")):
        return ("CC=ccache gcc",), "ccache gcc: ccache is on PATH, and the tree has no objects yet"
    return (), "gcc: there is no ccache on PATH"


def _recorded(tree: Path) -> str:
    """Return the compiler command that kbuild has recorded beside the tree's objects; "" if there is none."""
    for name in ("init/.main.o.cmd", "kernel/.fork.o.cmd"):
        if or_false((tree / name).is_file):
            found = _COMMAND.search((tree / name).read_text(errors="replace"))
            return found[1].strip() if found else ""
    return ""


def _around_first_error(said: list[str]) -> list[str]:
    """Return the lines around the first error."""
    first = next((number for number, line in enumerate(said) if _ERROR.search(line)), len(said) - _SHOWN)
    start = max(0, first - 5)
    return said[start : start + _SHOWN]
