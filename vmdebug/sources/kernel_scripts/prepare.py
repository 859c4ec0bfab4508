"""The kernel's own GDB scripts (`lx-…`), as a directory that loads as it stands, kept by build-id.

vmlinux-gdb.py wants `scripts/gdb` beside it, and every part of that imports
`constants.py`, which make generates; see scripts/gdb/linux/Makefile and the target
`scripts_gdb` of the top Makefile. What is missing is looked for beside the vmlinux:
in its tree, in the source of that, in a Nix kernel's `dev` output. Scripts are
copied, some 150 KB: a source moves on, a store is swept, and these stay those of their build.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from vmdebug import guest, kimage
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError, VmdebugError
from vmdebug.guest import GuestOptions, Kernel, LaunchSpec
from vmdebug.progress import Report
from vmdebug.sources import cache
from vmdebug.sources.kernel_scripts import constants, script_parts
from vmdebug.sources.kernel_scripts.constants import Source
from vmdebug.sources.kernel_scripts.script_parts import LOADER, Parts, Python, Wanted
from vmdebug.sources.kernels.dev_output import why_unusable
from vmdebug.spelling import option

WHAT = "making the kernel's GDB scripts"

_RECORD = "complete.json"

Fetch = Callable[[], Source]
"""Gets a kernel's source, at some cost, when nothing else has helped; raises `VmdebugError` when it can't."""


class Scripts(msgspec.Struct, frozen=True, kw_only=True):
    """Kernel scripts that GDB can load.

    Args:
        directory: It has `vmlinux-gdb.py` beside `scripts/gdb`.
        how: Where they and their `constants.py` come from, in words.
        release: The kernel's `uname -r`.
        build_id: The kernel's, in hex; "" where it carries none.
    """

    directory: Path
    how: str
    release: str
    build_id: str


def filled(spec: LaunchSpec, options: GuestOptions, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Return the guest with the scripts that are at hand: made before, or only to be put together.

    Nothing is built. A note says how to get those that are not at hand.

    Args:
        spec: What a source resolved; scripts that it has are left alone.
        options: What its user said, for the note.
        report: Told if another process is at it.
        deadline: When waiting for that one is given up.
    """
    kernel = spec.kernel
    if kernel.vmlinux is None or kernel.gdb_scripts is not None:
        return spec
    try:
        made = at_hand(Wanted(kernel, kernel.vmlinux), report=report, deadline=deadline)
    except VmdebugError as error:
        note = f"no kernel scripts in GDB: {error.message}"
    else:
        if made is not None:
            with_scripts = msgspec.structs.replace(kernel, gdb_scripts=made.directory)
            return msgspec.structs.replace(spec, kernel=with_scripts)
        why = why_unusable(kernel.vmlinux.parent)
        note = f"no kernel scripts in GDB: {why}; `{_command(spec, options)}` makes them"
    return msgspec.structs.replace(spec, notes=(*spec.notes, note))


def at_hand(wanted: Wanted, *, report: Report, deadline: Deadline) -> Scripts | None:
    """Return the scripts of a kernel if neither make nor nix is needed for them.

    Raises:
        MismatchError: those that lie beside its vmlinux are another kernel's.
        UsageError: the kernel's debugging information is reduced.
        HostError: the cache is not ours to write.
        DeadlineError: another process took too long.
    """
    made = found(wanted)
    if made is not None:
        return made
    parts = script_parts.look(wanted)
    if parts.python is None or parts.constants is None:
        return None
    with cache.lock(directory(wanted), WHAT, report, deadline):
        return found(wanted) or _put_together(wanted, parts.python, parts.constants)


def make(
    kernel: Kernel,
    *,
    source: Path | None = None,
    fetch: Fetch | None = None,
    report: Report,
    deadline: Deadline,
) -> Scripts:
    """Return the scripts of a kernel, made in the user's cache if they do not load as they stand.

    Args:
        kernel: With its vmlinux.
        source: The kernel's source, or the tree that it was built in, where none is found.
        fetch: Gets the source, where `source` is None and what is found does not do.
        report: Told about long steps.
        deadline: When making is given up.

    Raises:
        UsageError: there is nothing to make them of; or the kernel's debugging information is
            missing or reduced.
        MismatchError: what there is belongs to another kernel.
        HostError: a program or space is missing.
        BuildError: make or nix failed.
        DeadlineError: it took too long.
    """
    wanted = _with_types(kernel)
    if kernel.gdb_scripts is not None:
        return _scripts(wanted, kernel.gdb_scripts, "loads as it stands")
    made = found(wanted)
    if made is not None:
        return made
    parts = script_parts.look(wanted, source)
    with cache.lock(directory(wanted), WHAT, report, deadline):
        return found(wanted) or _make(wanted, parts, source, fetch, report=report, deadline=deadline)


def found(wanted: Wanted) -> Scripts | None:
    """Return what was made before for this very kernel."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return guest.decode((directory(wanted) / _RECORD).read_bytes(), Scripts)
    return None


def directory(wanted: Wanted) -> Path:
    """Return where a kernel's scripts are kept: by its build-id.

    Where it carries none, by the very file: version strings do not tell configurations apart, and
    Nix's have no date.
    """
    build_id = kimage.read_vmlinux(wanted.vmlinux).build_id
    if not build_id:
        real = wanted.vmlinux.resolve()
        seen = real.stat()
        file = f"{real} {seen.st_size} {seen.st_mtime_ns}"
        build_id = f"file-{hashlib.sha256(file.encode()).hexdigest()[:32]}"
    return cache.directory("gdb-scripts") / build_id


def _with_types(kernel: Kernel) -> Wanted:
    """Return the kernel with its vmlinux, in which there are types.

    Raises:
        UsageError: there aren't.
    """
    if kernel.vmlinux is None:
        raise UsageError(
            f"no symbols for {kernel.origin}, and its GDB scripts need them",
            hint=f"give its vmlinux: {option('vmlinux', 'FILE')}",
        )
    if not kimage.read_vmlinux(kernel.vmlinux).has_dwarf:
        raise UsageError(
            f"{kernel.vmlinux} has no debugging information, and the kernel's GDB scripts need its types",
            hint="build the kernel with CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y",
        )
    return Wanted(kernel, kernel.vmlinux)


def _make(
    wanted: Wanted,
    parts: Parts,
    source: Path | None,
    fetch: Fetch | None,
    *,
    report: Report,
    deadline: Deadline,
) -> Scripts:
    """Make them in the way that costs least of those that work."""
    if parts.python is not None and parts.constants is not None:
        return _put_together(wanted, parts.python, parts.constants)
    failed: BuildError | None = None
    if parts.python is not None and parts.template is not None and parts.build is not None:
        try:
            text = constants.by_module_build(
                parts.template, parts.build, what=WHAT, report=report, deadline=deadline
            )
        except BuildError as error:
            # A tree that was cleaned, or another compiler. From its source it may still work.
            failed = error
        else:
            how = f"{parts.python.directory}, constants.py by the makefiles of {parts.build}"
            return _assemble(wanted, parts.python, text, how)
    origin = _origin(wanted, parts, source, fetch, failed)
    tree = constants.clean(origin, report=report, deadline=deadline)
    script_parts.refuse_other(tree, wanted)
    python = script_parts.of_source(tree)
    if python is None:
        raise UsageError(
            f"there are no GDB scripts in {tree}: they came with Linux 4.0",
            hint="go without: all else of `attach` works",
        )
    text = constants.by_source(tree, origin.config, what=WHAT, report=report, deadline=deadline)
    return _assemble(wanted, python, text, f"{python.directory}, constants.py by `make scripts_gdb`")


def _origin(
    wanted: Wanted, parts: Parts, source: Path | None, fetch: Fetch | None, failed: BuildError | None
) -> Source:
    """Return the source to make everything of.

    Raises:
        BuildError: there is none, and a tree had been tried.
        UsageError: there is none.
    """
    config = script_parts.config(wanted, parts)
    path = source or parts.source
    if path is None and fetch is not None:
        fetched = fetch()
        # What the kernel was built with goes before what it was to be built with.
        return msgspec.structs.replace(fetched, config=config or fetched.config)
    if failed is not None and source is None:
        raise failed
    if path is None:
        raise UsageError(
            f"no GDB scripts of {wanted.kernel.origin}: {why_unusable(wanted.vmlinux.parent)}",
            hint="give its source, or the tree that it was built in, with --source",
        )
    return Source(path=path, config=config)


def _put_together(wanted: Wanted, python: Python, generated: Path) -> Scripts:
    return _assemble(wanted, python, generated.read_text(), f"{python.directory} and {generated}")


def _assemble(wanted: Wanted, python: Python, text: str, how: str) -> Scripts:
    """Put a directory together beside its place, and move it there when it is whole."""
    constants.refuse_reduced(text, wanted.kernel)
    target = directory(wanted)
    with cache.writing(target.parent):
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:12]}."))
        try:
            linux = partial / "scripts/gdb/linux"
            linux.mkdir(parents=True)
            for part in sorted((python.directory / "linux").glob("*.py")):
                if part.is_file():  # an O= tree has links, which its source may have left behind
                    shutil.copyfile(part, linux / part.name)
            (linux / "constants.py").write_text(text)
            shutil.copyfile(python.loader, partial / LOADER)
            made = _scripts(wanted, target, how)
            (partial / _RECORD).write_bytes(guest.encode(made))
            # A directory without its record is one that somebody has been deleting from.
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return made


def _scripts(wanted: Wanted, where: Path, how: str) -> Scripts:
    build_id = kimage.read_vmlinux(wanted.vmlinux).build_id
    return Scripts(directory=where, how=how, release=wanted.kernel.release, build_id=build_id)


def _command(spec: LaunchSpec, options: GuestOptions) -> str:
    """Return the command that makes the scripts for what is to be started."""
    words = ["vmdebug", "kernel", "scripts", spec.guest]
    for word, value in (("--kernel", options.kernel), ("--vmlinux", options.vmlinux)):
        words += [word, value] if value is not None else []
    return shlex.join(words)
