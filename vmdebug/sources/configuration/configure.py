"""`kernel config`: fragments merged onto a base by the kernel's own tools, and the proof that they stuck.

Kconfig drops without a word what it doesn't know and what depends on something that is off. So each option
that a fragment asks for is compared with what came about, and Kconfig is asked about the others.
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
    """An option that is not as it was asked for.

    Args:
        option: Its name, with CONFIG_.
        wanted: The value asked for, as in a .config; "n" where it was to be off.
        found: The value that it has; "n" where it is off or absent.
        fragment: Who asks: a fragment's name, or "--builtin".
        why: What stopped it.
        mends: A fragment of ours that brings what it depends on; "" where none is known.
        wish: Whether its fragment calls it a preference, and it is no failure.
    """

    option: str
    wanted: str
    found: str
    fragment: str
    why: str
    mends: str = ""
    wish: bool = False

    def __str__(self) -> str:
        mends = f"; add -f {self.mends}" if self.mends else ""
        return f"{self.option}: wanted {self.wanted}, is {self.found} ({self.fragment}): {self.why}{mends}"


class Configured(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration that was made.

    Args:
        config: The .config.
        source: The kernel's source.
        version: Its version, by the top Makefile.
        base: What it started from.
        fragments: What was merged, in this order, with what the wanted ones need.
        added: Those of them that nobody named.
        asked: How many options the fragments ask for.
        modules: How many options are modules.
        dropped: What is not as asked.
        notes: What else its user should know.
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
        """What is not as asked, and no mere wish."""
        return tuple(option for option in self.dropped if not option.wish)


@dataclass(frozen=True, slots=True)
class _Job:
    """A configuration to be made."""

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
    """Write a configuration into a build directory, and prove that it has what was asked for.

    Args:
        base: What it starts from; see `bases.parse`.
        names: Fragments, ours by name or files, a later one over an earlier.
        source: The kernel's source, a directory or a tarball; None takes `kernel_source.default_source`.
        directory: Where `.config` goes, for `make O=`; the source itself for a build in-tree.
        builtin: Whether what would be a module is to be built in.
        report: Told what is done.
        deadline: When it is given up.

    Raises:
        UsageError: base, fragments, source or directory cannot be right.
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
        _takeable(path)
    with _claimed(directory):
        job = _Job(start, tree, directory, wanted, builtin, kbuild.environment(), report, deadline)
        _merge(job)
        if builtin:
            _without_modules(job)
        done = _result(job, [each.name for each in given])
        _sign(directory, base, names, builtin=builtin)
    return done


def _takeable(path: Path) -> None:
    """Make sure that the kernel's Makefile and merge_config.sh can take a path."""
    if re.search(r"[\s:]", str(path)):
        raise UsageError(
            f"{str(path)!r}: the kernel's own tools take no name with a blank or a colon",
            hint="put it where no directory has one",
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
def _claimed(directory: Path) -> Iterator[None]:
    """Make the directory; what is its .config is its .config.old afterwards, as Kconfig does it.

    Kconfig does it each time that it writes, and it writes several times here.
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
    """Have the kernel's own tools put base and fragments together."""
    make = job.make()
    # With `allnoconfig` the fragments are all there is; so it is for the builtin kernel.
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
    # What nobody names: off for a minimal base, else as its Kconfig has it; as merge_config.sh's -n does it.
    rest = "allnoconfig" if job.base.minimal else "alldefconfig"
    job.run(f"KCONFIG_ALLCONFIG={requested}", rest)


def _without_modules(job: _Job) -> None:
    """Turn what would be a module into a built-in, by the kernel's own target."""
    job.report(Step(_WHAT, note="building modules in"))
    try:
        job.run("mod2yesconfig")
    except BuildError as error:
        raise BuildError(
            f"{job.source} cannot turn modules into built-ins: it has no `make mod2yesconfig`",
            hint="kernels have it since 5.6",
            detail=error.detail,
        ) from error


def _result(job: _Job, named: Sequence[str]) -> Configured:
    now = job.options()
    asked = fragments.asked(job.fragments)
    modules = [option for option, value in now.items() if value == _MODULE]
    dropped = {
        option: (_as_built(value, job.builtin), fragment.name, option in fragment.wishes)
        for option, (value, fragment) in asked.items()
        # What is asked for as a module and cannot be built in is told below.
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
    mends = _mends(facts, {each.path for each in merged}) if facts is not None and found == "n" else ""
    return Option(option, wanted, found, fragment, why, mends, wish)


def _mends(facts: reasons.Facts, merged: AbstractSet[Path]) -> str:
    """Return the fragment of ours, not merged yet, that turns on all that is off; "" for expressions."""
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
                yield f"{option}={value} of {fragment.name} counts, not {before[1]}'s {before[0]}"
            seen[option] = (value, fragment.name)
    if job.base.path is not None:
        have = dotconfig.read(job.base.path)
        lost = [name for name, value in have.items() if value in ("y", _MODULE) and name not in now]
        if lost:
            yield (
                f"{len(lost)} options of {job.base.name} are on there and nowhere here, such as {lost[0]}:"
                " of another version, or without what they depend on"
            )


def _sign(directory: Path, base: str, names: Sequence[str], *, builtin: bool) -> None:
    """Write at the top of the .config how it was made; the next `make *config` drops it."""
    config = directory / ".config"
    words = ["--base", base, *(word for name in names for word in ("-f", name))]
    words += ["--builtin"] if builtin else []
    made = f"# Made by: vmdebug kernel config --source TREE {shlex.join(words)} -o DIR\n"
    config.write_text(made + config.read_text())
