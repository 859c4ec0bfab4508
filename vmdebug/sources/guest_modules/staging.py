"""Stages modules in a directory of the user's cache: copied, decompressed, stripped, and indexed by depmod.

The stage of a build tree is kept: after the next `make` only the modules that have changed are copied again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmdebug import cache, paths, process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.progress import Report, Step
from vmdebug.sources.guest_modules.module_set import ModuleSet
from vmdebug.sources.kernels import modules

WHAT = "packing the kernel's modules"

EXTRA = "vmdebug"
"""The directory in lib/modules/RELEASE with the modules of the option `module`; depmod prefers them."""

_BATCH = 200
"""How many modules one `strip` gets."""

_STRIP_SECONDS = 300.0

_DEPMOD_CONFIG = f"search {EXTRA} updates built-in\n"
"""See depmod.d(5)."""


def update(stage: Path, wanted: ModuleSet, *, report: Report, deadline: Deadline) -> Path:
    """Bring a stage up to date, and return its lib/modules/RELEASE.

    Args:
        stage: The directory; the caller has locked it.
        wanted: The modules.
        report: Called with each batch of modules.
        deadline: When to give up.

    Raises:
        HostError: a module cannot be read, or the cache is full.
        DeadlineError: it took too long.
    """
    top = stage / "lib/modules" / wanted.release
    with cache.writing(stage):
        for other in stage.glob("lib/modules/*"):
            if other != top:
                shutil.rmtree(other)
        top.mkdir(parents=True, exist_ok=True)
        os.utime(stage)
        _remove_others(top, wanted.files)
        changed = [name for name, file in wanted.files.items() if not _same_time(top / name, file)]
        for start in range(0, len(changed), _BATCH):
            report(Step(WHAT, done=start, total=len(changed), note="copying"))
            _copy(top, changed[start : start + _BATCH], wanted, deadline)
        for name, file in wanted.lists().items():
            _list(file, top / name, wanted)
    return top


def add(top: Path, extra: Iterable[Path]) -> None:
    """Put the modules of the option `module` into a stage, in place of those of the last time.

    Args:
        top: Its lib/modules/RELEASE.
        extra: The module files, compressed or not; their debug information is removed.
    """
    with cache.writing(top):
        shutil.rmtree(top / EXTRA, ignore_errors=True)
        copied = [top / EXTRA / f"{paths.module_name(file)}.ko" for file in extra]
        for file, to in zip(extra, copied, strict=True):
            to.parent.mkdir(exist_ok=True)
            to.write_bytes(_content(file))
    _strip(copied)


def index(stage: Path, release: str, *, deadline: Deadline) -> None:
    """Write modules.dep and the other indexes of modprobe.

    Raises:
        HostError: depmod is missing.
        BuildError: depmod failed.
        DeadlineError: it took too long.
    """
    config = stage / "depmod.conf"
    config.write_text(_DEPMOD_CONFIG)
    process.run(depmod_argv(_found("depmod"), stage, config, release), deadline=deadline)


def depmod_argv(depmod: Path, stage: Path, config: Path, release: str) -> tuple[str, ...]:
    """Return the command that indexes a stage."""
    return (str(depmod), "-b", str(stage), "-C", str(config), release)


def load_order(stage: Path, release: str, names: Sequence[str], *, deadline: Deadline) -> list[Path]:
    """Return the files of modules and of those that they need, in the order in which to load them.

    Args:
        stage: The directory, indexed.
        release: RELEASE.
        names: The kernel's names of the modules; those that are built in or do not exist are left out.
        deadline: When to give up.
    """
    modprobe = _found("modprobe")
    found: dict[Path, None] = {}
    for name in names:
        argv = (modprobe, "-d", stage, "-C", "/dev/null", "-S", release, "--show-depends", name)
        said = process.run(argv, deadline=deadline, check=False).stdout
        lines = (
            line.removeprefix("insmod ").strip() for line in said.splitlines() if line.startswith("insmod ")
        )
        found |= dict.fromkeys(map(Path, lines))
    return list(found)


def lacking() -> str:
    """Return the name of a program of kmod that is missing on this machine; "" if there are all."""
    return next((name for name in ("depmod", "modprobe") if _which(name) is None), "")


def _found(program: str) -> Path:
    found = _which(program)
    if found is None:
        raise HostError(
            f"{program} is not on PATH, and it is needed for the guest's modules",
            hint="install it: apt install kmod",
        )
    return Path(found)


def _which(program: str) -> str | None:
    """Return the path of a program of kmod; a user's PATH may lack /usr/sbin."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _remove_others(top: Path, names: Iterable[str]) -> None:
    kept = {top / name for name in names}
    for path in top.rglob("*.ko"):
        if path not in kept:
            path.unlink()


def _same_time(staged: Path, file: Path) -> bool:
    try:
        return staged.stat().st_mtime_ns == file.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def _copy(top: Path, names: Sequence[str], wanted: ModuleSet, deadline: Deadline) -> None:
    deadline.left(f"{WHAT} to end")
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        file = wanted.files[name]
        if file.suffix == ".ko":
            shutil.copyfile(file, top / name)
        else:
            (top / name).write_bytes(_content(file))
    if wanted.built or modules.has_debug_info((top / names[0]).read_bytes()):
        _strip([top / name for name in names])
    # Last: a stage that was interrupted has modules with another time, which are copied again.
    for name in names:
        os.utime(top / name, ns=(0, wanted.files[name].stat().st_mtime_ns))


def _content(file: Path) -> bytes:
    data = modules.content(file)
    if not data:
        raise HostError(
            f"the module {file} cannot be read or decompressed",
            hint="is it complete? build or install it again",
        )
    return data


def _strip(files: Sequence[Path]) -> None:
    """Remove the debug information from modules; a module of another architecture may keep it.

    The signature at the end of a module is lost with it, as with INSTALL_MOD_STRIP=1.
    """
    strip = shutil.which("strip")
    if strip is not None and files:
        process.run((strip, "--strip-debug", *files), deadline=Deadline.after(_STRIP_SECONDS), check=False)


def _list(file: Path, to: Path, wanted: ModuleSet) -> None:
    text = file.read_bytes()
    if file.name == "modules.order" and wanted.built:
        text = "".join(f"{name}\n" for name in wanted.files).encode()
    paths.write_atomically(to, text)
