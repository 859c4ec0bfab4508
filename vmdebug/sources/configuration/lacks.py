"""What a kernel, or a .config, lacks of what its guest needs built in, and how to add it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmdebug.errors import UsageError
from vmdebug.guest import Kernel
from vmdebug.paths import or_false
from vmdebug.sources.configuration import dotconfig
from vmdebug.sources.configuration.dotconfig import Configuration
from vmdebug.sources.configuration.requirements import Need, Purpose, all_, of_runner
from vmdebug.sources.kernels import tree
from vmdebug.spelling import option


@dataclass(frozen=True, slots=True)
class Lack:
    """A need that a kernel does not meet.

    Args:
        need: The need.
        found: The value that it has instead: "n", "m", "not built in".
    """

    need: Need
    found: str

    def __str__(self) -> str:
        return f"{self.need.option}={self.found}"


def lacking(kernel: Kernel, needs: Iterable[Need]) -> tuple[tuple[Lack, ...], str] | None:
    """Return the needs that a kernel does not meet, and the file that says so.

    Returns:
        None if the configuration is unknown.
    """
    configuration = dotconfig.of(kernel)
    if configuration is not None:
        return in_configuration(configuration, needs), configuration.origin
    built_in = dotconfig.built_in(kernel)
    if not built_in:
        return None
    absent = [need for need in needs if need.module and need.module not in built_in]
    return tuple(Lack(need, "not built in") for need in absent), f"modules.builtin in {kernel.modules}"


def in_configuration(configuration: Configuration, needs: Iterable[Need]) -> tuple[Lack, ...]:
    """Return the needs that a configuration does not meet."""
    return tuple(
        Lack(need, configuration.value(need.option)) for need in needs if not need.met(configuration)
    )


def check_runner(kernel: Kernel, script: Path, text: str, guest: str) -> str:
    """Check that a kernel which replaces a runner's own can boot its guest.

    Args:
        kernel: The kernel.
        script: The runner.
        text: Its text.
        guest: GUEST as the user wrote it.

    Returns:
        See `check_own`.

    Raises:
        UsageError: see `check_own`.
    """
    reason = "; the guest's initrd has only modules of its own kernel"
    return check_own(kernel, of_runner(script, text), guest, reason=reason)


def check_own(kernel: Kernel, needs: Iterable[Need], guest: str, *, what: str = "", reason: str = "") -> str:
    """Check that a kernel has built in what its guest needs.

    Args:
        kernel: The kernel.
        needs: What is needed.
        guest: GUEST as the user wrote it.
        what: The option that needs it, as the user wrote it; "": the guest itself does.
        reason: Why it must be built in, for the error's detail.

    Returns:
        A note for the user if the configuration is unknown; otherwise "".

    Raises:
        UsageError: something is not built in; the hint has the command that fixes this.
    """
    wanted = tuple(needs)
    seen = lacking(kernel, wanted)
    if seen is None:
        names = ", ".join(need.option for need in wanted)
        return f"it is unknown whether {kernel.image} has built in what {what or guest} needs: {names}"
    found, origin = seen
    if not found:
        return ""
    names = ", ".join(f"CONFIG_{lack}" for lack in found)
    usage = f"{guest} with {what}" if what else guest
    anyway = f"{option('force', True)} starts it anyway"
    raise UsageError(
        f"{kernel.origin} cannot boot {usage}: these options are not built in: {names}",
        hint=fix_command(kernel, found),
        detail="\n".join((*_explained(found), f"according to {origin}{reason}", anyway)),
    )


def _explained(found: Sequence[Lack]) -> Iterator[str]:
    """Yield a line for each missing option: its value, what needs it, and the fragment that sets it."""
    width = max(len(str(lack)) for lack in found)
    for lack in found:
        fragment = f" (fragment {lack.need.add_fragment})" if lack.need.add_fragment else ""
        yield f"CONFIG_{lack!s:<{width}}  {lack.need.why}{fragment}"


def fix_command(kernel: Kernel, found: Iterable[Lack]) -> str:
    """Return the command that adds the missing options to a kernel's configuration."""
    names = sorted({lack.need.add_fragment for lack in found} - {""})
    wanted = [word for name in names for word in ("-f", name)]
    directory = kernel.vmlinux.parent if kernel.vmlinux is not None else None
    source = tree.source(directory) if directory is not None else None
    if directory is None or source is None:
        return (
            f"build it with them: vmdebug kernel config --source TREE --base FILE {shlex.join(wanted)} -o DIR"
        )
    words = ("--source", str(source), "--base", str(directory / ".config"), *wanted, "-o", str(directory))
    return f"vmdebug kernel config {shlex.join(words)} && make -C {shlex.quote(str(directory))} -j$(nproc)"


class Checked(msgspec.Struct, frozen=True):
    """An option that was checked.

    Args:
        option: Its name, with CONFIG_.
        wanted: The required value.
        found: The value that it has; "n" if it is off.
        purpose: Who needs it.
        why: What it is for.
        add_fragment: The fragment that sets it.
    """

    option: str
    wanted: str
    found: str
    purpose: Purpose
    why: str
    add_fragment: str

    @property
    def met(self) -> bool:
        """Whether it has the required value."""
        return self.wanted == self.found


def check(path: Path) -> tuple[Checked, ...]:
    """Return all required options, with their values in a .config.

    Args:
        path: The .config, compressed with gzip or not, or its directory.

    Raises:
        UsageError: it is not a configuration.
    """
    file = path / ".config" if or_false(path.is_dir) else path
    if not or_false(file.is_file):
        raise UsageError(f"there is no configuration {file}", hint="give a .config, or a tree that has one")
    configuration = Configuration(str(file), dotconfig.read(file))
    return tuple(_checked(need, configuration) for need in all_())


def _checked(need: Need, configuration: Configuration) -> Checked:
    return Checked(
        option=f"CONFIG_{need.option}",
        wanted="n" if need.off else "y",
        found=configuration.value(need.option),
        purpose=need.purpose,
        why=need.why,
        add_fragment=need.add_fragment,
    )
