"""The base of a kernel configuration, onto which fragments are merged: `--base`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmdebug import arch, process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.paths import absolute, or_false
from vmdebug.progress import Report, Step
from vmdebug.sources.configuration import dotconfig

RUNNING = "running"
VNG = "vng"

MINIMAL = ("allnoconfig", "tinyconfig")
"""Targets of make that turn everything off. Fragments then also need those that they depend on."""

_TARGET = re.compile(r"(?:all\w+|tiny|\w*def|\w+_def)config")
_VNG_PACKAGE = "pipx install virtme-ng"


@dataclass(frozen=True, slots=True)
class Base:
    """The base of a configuration.

    Args:
        kind: A target of make, a .config, or virtme-ng's configuration.
        name: As the user wrote it.
        path: The .config; None for one that has to be made.
        extra: The names of fragments that belong to it.
    """

    kind: Literal["target", "file", "vng"]
    name: str
    path: Path | None = None
    extra: tuple[str, ...] = ()

    @property
    def minimal(self) -> bool:
        """Whether it turns off everything that no fragment asks for."""
        return self.name in MINIMAL


def parse(words: str, *, root: Path = Path("/")) -> Base:
    """Return the base that `--base` names.

    Args:
        words: A target of make, a .config, a build tree, "running" or "vng".
        root: The root of the running system.

    Raises:
        UsageError: it is none of these, or not a configuration.
        HostError: the configuration of the running system was not found.
    """
    if words == VNG:
        return Base("vng", words, extra=("ext4",))
    if words == RUNNING:
        return Base("file", words, running(root))
    if _TARGET.fullmatch(words):
        return Base("target", words)
    path = absolute(words)
    if or_false(path.is_dir):
        path /= ".config"
    if not or_false(path.is_file):
        raise UsageError(
            f"--base {words}: not a target of make, and there is no file {path}",
            hint=f"give defconfig, tinyconfig, allnoconfig, a .config, {RUNNING} or {VNG}",
        )
    dotconfig.read(path)
    return Base("file", words, path)


def running(root: Path = Path("/"), release: str = "") -> Path:
    """Return the file with the configuration of the running kernel.

    Args:
        root: The root of its file system.
        release: Its `uname -r`; "" uses the current one.

    Raises:
        HostError: there is none.
    """
    release = release or os.uname().release
    places = (
        root / "proc/config.gz",
        root / f"boot/config-{release}",
        root / f"lib/modules/{release}/config",
        root / f"lib/modules/{release}/build/.config",
        root / f"usr/lib/modules/{release}/config",
        # NixOS: its kernel package has none of the files above.
        root / "run/booted-system/kernel-modules/lib/modules" / release / "build/.config",
    )
    for path in places:
        if or_false(path.is_file):
            return path
    raise HostError(
        f"the configuration of the running kernel, {release}, was not found",
        hint="`modprobe configs` may make /proc/config.gz; or give the file: --base FILE",
        detail="\n".join(f"there is no {path}" for path in places),
    )


def make(
    base: Base,
    directory: Path,
    *,
    make: Sequence[str],
    source: Path,
    env: Mapping[str, str],
    report: Report,
    deadline: Deadline,
) -> None:
    """Write the base as `.config` into a build directory.

    Args:
        base: What `parse` returned.
        directory: The build directory; it exists.
        make: The command line of make up to its target.
        source: The kernel's source.
        env: The environment of make and virtme-ng.
        report: Receives the progress.
        deadline: When to stop.

    Raises:
        HostError: virtme-ng is needed and not installed.
        BuildError: make or virtme-ng failed.
        DeadlineError: it took too long.
    """
    report(Step("configuring the kernel", note=base.name))
    match base.kind:
        case "file":
            assert base.path is not None  # noqa: S101 - `parse` gives each file its path
            (directory / ".config").write_text(dotconfig.text_of(base.path))
        case "target":
            _target(base, make, source, env, deadline)
        case "vng":
            _vng(directory, source, env, deadline)


def _target(
    base: Base, make: Sequence[str], source: Path, env: Mapping[str, str], deadline: Deadline
) -> None:
    done = process.run([*make, base.name], env=env, deadline=deadline, check=False)
    if done.status == 0:
        return
    if re.search(r"No rule to make target|Can't find default configuration", done.stderr):
        configs = sorted(path.name for path in source.glob(f"{arch.native().source}/configs/*config"))
        raise UsageError(
            f"--base {base.name}: {source} has no such configuration",
            hint=f"defconfig, tinyconfig, allnoconfig, or one of: {', '.join(configs)}",
        )
    raise BuildError(
        f"`make {base.name}` ended with status {done.status}",
        detail=f"{process.shell_line(done.argv)}\n{process.tail(done.stderr)}",
    )


def _vng(directory: Path, source: Path, env: Mapping[str, str], deadline: Deadline) -> None:
    """Have virtme-ng write its configuration, as with `vng --kconfig`.

    `vng --kconfig` runs the program virtme-configkernel, which also accepts a build directory.
    """
    program = shutil.which("virtme-configkernel")
    if program is None:
        raise HostError(
            "`vng` is the configuration of virtme-ng, which is not on PATH",
            hint=f"install it: {_VNG_PACKAGE}  (or apt install virtme-ng, Debian 13 and later)",
        )
    # It would keep an existing .config.
    (directory / ".config").unlink(missing_ok=True)
    argv = [program, "--defconfig"]
    outside = directory != source
    done = process.run(
        [*argv, f"O={directory}"] if outside else argv, env=env, cwd=source, deadline=deadline, check=False
    )
    if done.status != 0 or not (directory / ".config").is_file():
        raise BuildError(
            f"virtme-ng wrote no configuration: `{Path(program).name}` ended with status {done.status}",
            detail=f"{process.shell_line(done.argv)}\n{process.tail(done.stderr or done.stdout)}",
        )
