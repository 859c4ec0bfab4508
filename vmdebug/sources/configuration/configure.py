"""`kernel config`: merges fragments onto a base with the kernel's own tools, and checks the result.

Kconfig silently drops options that it does not know, and options whose dependencies are off. So this compares
each option that a fragment asks for with the result, and asks Kconfig about those that differ.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.progress import Report, Step
from vmdebug.sources import kbuild, kernel_source
from vmdebug.sources.configuration import bases, dotconfig, fragments, merging, reasons
from vmdebug.sources.configuration.bases import Base
from vmdebug.sources.configuration.fragments import Fragment

_WHAT = "configuring the kernel"
_MODULE = "m"


class Option(msgspec.Struct, frozen=True):
    """An option that does not have the requested value.

    Args:
        option: Its name, with CONFIG_.
        wanted: The requested value, as in a .config; "n" for off.
        found: The value that it has; "n" if it is off or absent.
        fragment: The fragment that asks for it, or "--builtin".
        why: The reason.
        add_fragment: A fragment of vmdebug that enables what it depends on; "" if there is none.
        wish: Whether its fragment only prefers this value, so that this is no failure.
    """

    option: str
    wanted: str
    found: str
    fragment: str
    why: str
    add_fragment: str = ""
    wish: bool = False

    def __str__(self) -> str:
        add = f"; add -f {self.add_fragment}" if self.add_fragment else ""
        return f"{self.option}: wanted {self.wanted}, is {self.found} ({self.fragment}): {self.why}{add}"


class Configured(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `configure`.

    Args:
        config: The .config.
        source: The kernel's source.
        version: Its version, from the top Makefile.
        base: The name of the base.
        fragments: The merged fragments, in this order, including those that others need.
        added: Those that the user did not name.
        asked: How many options the fragments ask for.
        modules: How many options are modules.
        dropped: The options that do not have the requested value.
        notes: Further notes for the user.
        make: The command that builds it.
    """

    config: Path
    source: Path
    version: str
    base: str
    fragments: tuple[str, ...]
    added: tuple[str, ...]
    asked: int
    modules: int
    dropped: tuple[Option, ...]
    notes: tuple[str, ...]
    make: str

    @property
    def failed(self) -> tuple[Option, ...]:
        """The dropped options that are required, not only preferred."""
        return tuple(option for option in self.dropped if not option.wish)


@dataclass(frozen=True, slots=True)
class _Job:
    """The inputs of `configure`."""

    base: Base
    source: Path
    directory: Path
    fragments: tuple[Fragment, ...]
    builtin: bool
    env: dict[str, str]
    report: Report
    deadline: Deadline

    def make(self, *words: str) -> tuple[str, ...]:
        return kbuild.argv(self.source, self.directory, *words)

    def run(self, *words: str) -> None:
        process.run(self.make(*words), env=self.env, deadline=self.deadline)

    def options(self) -> dict[str, str]:
        return dotconfig.options((self.directory / ".config").read_text())


def configure(
    base: str,
    names: Sequence[str],
    *,
    source: Path | None,
    directory: Path,
    builtin: bool = False,
    report: Report,
    deadline: Deadline,
) -> Configured:
    """Write a configuration into a build directory, and check that it has the requested options.

    Args:
        base: The base, see `bases.parse`.
        names: Fragments, by name or path; a later one overrides an earlier one.
        source: The kernel's source, a directory or a tarball; None takes `kernel_source.default_source`.
        directory: Where `.config` goes, for `make O=`; the source itself for a build in-tree.
        builtin: Whether to build everything into the kernel that would be a module.
        report: Receives the progress.
        deadline: When to stop.

    Raises:
        UsageError: base, fragments, source or directory is invalid.
        HostError: a program is missing.
        BuildError: make failed.
        DeadlineError: it took too long.
    """
    for program, package in (("make", "make"), ("gcc", "gcc"), ("flex", "flex"), ("bison", "bison")):
        process.find(program, package=package)
    start = bases.parse(base)
    given = tuple(fragments.load(name) for name in (*start.extra, *names))
    wanted = fragments.with_needs(given) if start.minimal else given
    tree = _source(source, directory, report, deadline)
    for path in (tree, directory, *(each.path for each in wanted)):
        _check_path(path)
    with _output_directory(directory):
        job = _Job(start, tree, directory, wanted, builtin, kbuild.environment(), report, deadline)
        _merge(job)
        if builtin:
            _without_modules(job)
        done = _result(job, [each.name for each in given])
        _sign(directory, base, names, builtin=builtin)
    return done


def _check_path(path: Path) -> None:
    """Check that the kernel's Makefile and merge_config.sh accept a path."""
    if re.search(r"[\s:]", str(path)):
        raise UsageError(
            f"{str(path)!r}: the kernel's build tools accept no path with a blank or a colon",
            hint="use a directory without them",
        )


def _source(source: Path | None, directory: Path, report: Report, deadline: Deadline) -> Path:
    if source is not None and source.expanduser().resolve() == directory:
        return directory
    try:
        found = kernel_source.look(source)
    except UsageError as error:
        if "has been built in" not in error.message:
            raise
        hint = f"write into it: -o {source}; or {error.hint}"
        raise UsageError(error.message, hint=hint) from error
    return kernel_source.unpacked(found, report=report, deadline=deadline)


@contextlib.contextmanager
def _output_directory(directory: Path) -> Iterator[None]:
    """Make the directory, and keep its .config as .config.old.

    Kconfig makes such a backup each time that it writes the file. Here it does so several times.
    """
    config, old = directory / ".config", directory / ".config.old"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        before = config.read_bytes() if config.is_file() else None
        if before is not None:
            old.write_bytes(before)
    except OSError as error:
        raise HostError(
            f"cannot write to {directory}: {error.strerror}", hint="give another -o DIR"
        ) from error
    try:
        yield
    finally:
        if before is not None:
            old.write_bytes(before)


def _merge(job: _Job) -> None:
    """Merge base and fragments with the kernel's own tools."""
    make = job.make()
    # `allnoconfig` adds nothing to the fragments, so it needs no base file; the builtin kernel uses it.
    alone = job.base.name == "allnoconfig"
    if not alone:
        bases.make(
            job.base,
            job.directory,
            make=make,
            source=job.source,
            env=job.env,
            report=job.report,
            deadline=job.deadline,
        )
    below = [] if alone else [job.directory / ".config"]
    files = [*below, *(each.path for each in job.fragments)]
    requested = job.directory / merging.REQUESTED
    job.report(Step(_WHAT, note="merging"))
    if files:
        process.run(
            merging.merge_argv(job.source, requested, files),
            env={**job.env, "KCONFIG_CONFIG": str(requested)},
            cwd=job.directory,
            deadline=job.deadline,
        )
    else:
        requested.write_text("")
    # Other options: off for a minimal base, or else their Kconfig default. merge_config.sh -n does the same.
    rest = "allnoconfig" if job.base.minimal else "alldefconfig"
    job.run(f"KCONFIG_ALLCONFIG={requested}", rest)


def _without_modules(job: _Job) -> None:
    """Build all modules into the kernel, with the kernel's own make target."""
    job.report(Step(_WHAT, note="building modules in"))
    try:
        job.run("mod2yesconfig")
    except BuildError as error:
        raise BuildError(
            f"{job.source} cannot build modules in: it has no `make mod2yesconfig`",
            hint="Linux 5.6 and later have it",
            detail=error.detail,
        ) from error


def _result(job: _Job, named: Sequence[str]) -> Configured:
    now = job.options()
    asked = fragments.asked(job.fragments)
    modules = [option for option, value in now.items() if value == _MODULE]
    dropped = {
        option: (_as_built(value, job.builtin), fragment.name, option in fragment.wishes)
        for option, (value, fragment) in asked.items()
        # Options that can only be modules are added below.
        if now.get(option, "n") not in (_as_built(value, job.builtin), *([value] if value == _MODULE else []))
    }
    if job.builtin:
        dropped |= {option: ("y", "--builtin", True) for option in modules if option not in dropped}
    job.report(Step(_WHAT, note="asking Kconfig"))
    facts = reasons.ask(
        dropped, source=job.source, directory=job.directory, env=job.env, deadline=job.deadline
    )
    return Configured(
        config=job.directory / ".config",
        source=job.source,
        version=kernel_source.version(job.source),
        base=job.base.name,
        fragments=tuple(each.name for each in job.fragments),
        added=tuple(each.name for each in job.fragments if each.name not in named),
        asked=len(asked),
        modules=len(modules),
        dropped=tuple(
            _dropped(option, what, facts.get(option), now, job.fragments) for option, what in dropped.items()
        ),
        notes=tuple(_notes(job, now)),
        make=shlex.join(job.make("-j$(nproc)")).replace("'-j$(nproc)'", "-j$(nproc)"),
    )


def _as_built(value: str, builtin: bool) -> str:
    return "y" if builtin and value == _MODULE else value


def _dropped(
    option: str,
    what: tuple[str, str, bool],
    facts: reasons.Facts | None,
    now: dict[str, str],
    merged: Sequence[Fragment],
) -> Option:
    wanted, fragment, wish = what
    found = now.get(option, "n")
    why = reasons.in_words(facts, wanted, found)
    if facts is not None and not facts.known:
        near = difflib.get_close_matches(option, now, n=1, cutoff=0.85)
        why += f"; did you mean {near[0]}?" if near else ""
    add_fragment = ""
    if facts is not None and found == "n":
        add_fragment = _missing_fragment(facts, {each.path for each in merged})
    return Option(option, wanted, found, fragment, why, add_fragment, wish)


def _missing_fragment(facts: reasons.Facts, merged: AbstractSet[Path]) -> str:
    """Return a fragment that is not merged and enables all missing dependencies; "" if there is none."""
    off = [re.fullmatch(r"(\w+) \[=n\]", text) for text, left in facts.limits.items() if left == "n"]
    names = {f"CONFIG_{each[1]}" for each in off if each}
    if not names or not all(off):
        return ""
    for path in sorted({*shipped.kconfigs().glob("*.config")} - merged):
        has = dotconfig.options(path.read_text())
        if all(has.get(name) in ("y", _MODULE) for name in names):
            return path.stem
    return ""


def _notes(job: _Job, now: dict[str, str]) -> Iterator[str]:
    seen: dict[str, tuple[str, str]] = {}
    for fragment in job.fragments:
        for option, value in fragment.options.items():
            before = seen.get(option)
            if before is not None and before[0] != value:
                yield f"{option}={value} of {fragment.name} overrides {before[0]} of {before[1]}"
            seen[option] = (value, fragment.name)
    if job.base.path is not None:
        have = dotconfig.read(job.base.path)
        lost = [name for name, value in have.items() if value in ("y", _MODULE) and name not in now]
        if lost:
            yield (
                f"{len(lost)} options that {job.base.name} enables are missing, such as {lost[0]}:"
                " they belong to another kernel version, or their dependencies are off"
            )


def _sign(directory: Path, base: str, names: Sequence[str], *, builtin: bool) -> None:
    """Write the command into the first line of the .config; the next `make *config` removes it."""
    config = directory / ".config"
    words = ["--base", base, *(word for name in names for word in ("-f", name))]
    words += ["--builtin"] if builtin else []
    made = f"# Made by: vmdebug kernel config --source TREE {shlex.join(words)} -o DIR\n"
    config.write_text(made + config.read_text())
