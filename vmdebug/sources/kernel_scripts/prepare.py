"""Prepares the kernel's own GDB scripts (`lx-…`) in a directory that GDB can load, cached by build-id.

vmlinux-gdb.py needs `scripts/gdb` beside it, whose modules import `constants.py`, which make generates: see
scripts/gdb/linux/Makefile and the target `scripts_gdb` of the top Makefile. This searches for missing parts
beside the vmlinux: in its tree, in the source of the tree, and in a Nix kernel's `dev` output. It copies the
scripts, about 150 KB, because a source may change and a store path may be deleted.
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

from vmdebug import cache, guest, kimage
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError, VmdebugError
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report
from vmdebug.sources.kernel_scripts import constants, script_parts
from vmdebug.sources.kernel_scripts.constants import Source
from vmdebug.sources.kernel_scripts.script_parts import LOADER, Parts, Python, Wanted
from vmdebug.sources.kernels.dev_output import why_unusable
from vmdebug.spelling import option

WHAT = "making the kernel's GDB scripts"

_RECORD = "complete.json"

Fetch = Callable[[], Source]
"""Downloads or unpacks a kernel's source; raises `VmdebugError` if that fails."""


class Scripts(msgspec.Struct, frozen=True, kw_only=True):
    """Kernel scripts that GDB can load.

    Args:
        directory: The directory with `vmlinux-gdb.py` and `scripts/gdb`.
        how: Where they and their `constants.py` come from, for messages.
        release: The kernel's `uname -r`.
        build_id: The kernel's build-id, in hex; "" if it has none.
    """

    directory: Path
    how: str
    release: str
    build_id: str


def with_scripts(
    spec: LaunchSpec, options: GuestOptions, *, report: Report, deadline: Deadline
) -> LaunchSpec:
    """Return the guest with its kernel's scripts, if they can be had without a build.

    Otherwise add a note that says how to make them.

    Args:
        spec: The resolved guest; scripts that it already has are kept.
        options: Its options, for the note.
        report: Receives a step if another process prepares them.
        deadline: When to stop waiting for that process.
    """
    kernel = spec.kernel
    if kernel.vmlinux is None or kernel.gdb_scripts is not None:
        return spec
    if not kimage.dwarf(kernel.vmlinux).version:
        return spec  # the scripts need types; a note says that there are none
    try:
        made = without_build(Wanted(kernel, kernel.vmlinux), report=report, deadline=deadline)
    except VmdebugError as error:
        note = f"no kernel scripts in GDB: {error.message}"
    else:
        if made is not None:
            with_scripts = msgspec.structs.replace(kernel, gdb_scripts=made.directory)
            return msgspec.structs.replace(spec, kernel=with_scripts)
        why = why_unusable(kernel.vmlinux.parent)
        note = f"no kernel scripts in GDB: {why}; run `{_command(spec, options)}`"
    return msgspec.structs.replace(spec, notes=(*spec.notes, note))


def without_build(wanted: Wanted, *, report: Report, deadline: Deadline) -> Scripts | None:
    """Return the scripts of a kernel if that needs neither make nor nix; None otherwise.

    Raises:
        MismatchError: the scripts beside its vmlinux belong to another kernel.
        UsageError: the kernel's debugging information is reduced.
        HostError: the cache is not writable.
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
    """Return the scripts of a kernel; complete them in the user's cache if GDB cannot load them as they are.

    Args:
        kernel: The kernel, with its vmlinux.
        source: The kernel's source, or the tree that it was built in; None searches for it.
        fetch: Gets the source if `source` is None and the search finds none.
        report: Receives the progress of long steps.
        deadline: When to stop.

    Raises:
        UsageError: the scripts' source is missing; or the kernel's debugging information is missing or
            reduced.
        MismatchError: the scripts belong to another kernel.
        HostError: a program or disk space is missing.
        BuildError: make or nix failed.
        DeadlineError: it took too long.
    """
    wanted = _with_types(kernel)
    if kernel.gdb_scripts is not None:
        return _scripts(wanted, kernel.gdb_scripts, "loads as it is")
    made = found(wanted)
    if made is not None:
        return made
    parts = script_parts.look(wanted, source)
    with cache.lock(directory(wanted), WHAT, report, deadline):
        return found(wanted) or _make(wanted, parts, source, fetch, report=report, deadline=deadline)


def found(wanted: Wanted) -> Scripts | None:
    """Return the scripts that were prepared before for this kernel; None if there are none."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return guest.decode((directory(wanted) / _RECORD).read_bytes(), Scripts)
    return None


def directory(wanted: Wanted) -> Path:
    """Return the directory of a kernel's scripts, named by its build-id.

    For a vmlinux without build-id the name is derived from the file: the version does not identify the
    configuration, and in Nix's kernels it has no date.
    """
    build_id = kimage.read_vmlinux(wanted.vmlinux).build_id
    if not build_id:
        real = wanted.vmlinux.resolve()
        seen = real.stat()
        file = f"{real} {seen.st_size} {seen.st_mtime_ns}"
        build_id = f"file-{hashlib.sha256(file.encode()).hexdigest()[:32]}"
    return cache.directory("gdb-scripts") / build_id


def _with_types(kernel: Kernel) -> Wanted:
    """Return the kernel with its vmlinux, and check that it has type information.

    Raises:
        UsageError: it has none.
    """
    if kernel.vmlinux is None:
        raise UsageError(
            f"the GDB scripts of {kernel.origin} need its symbols, and there are none",
            hint=f"give its vmlinux: {option('vmlinux', 'FILE')}",
        )
    if not kimage.dwarf(kernel.vmlinux).version:
        raise UsageError(
            f"{kernel.vmlinux} has no debugging information, and the kernel's GDB scripts need its types",
            hint=kimage.WITHOUT_DWARF,
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
    """Prepare the scripts in the cheapest way that works."""
    if parts.python is not None and parts.constants is not None:
        return _put_together(wanted, parts.python, parts.constants)
    failed: BuildError | None = None
    if parts.python is not None and parts.template is not None and parts.build is not None:
        try:
            text = constants.by_module_build(
                parts.template, parts.build, what=WHAT, report=report, deadline=deadline
            )
        except BuildError as error:
            # The tree was cleaned, or has another compiler. Its source may still work.
            failed = error
        else:
            how = f"{parts.python.directory}, constants.py by the makefiles of {parts.build}"
            return _assemble(wanted, parts.python, text, how)
    origin = _origin(wanted, parts, source, fetch, failed)
    tree = constants.clean(origin, report=report, deadline=deadline)
    script_parts.check_same_build(tree, wanted)
    python = script_parts.of_source(tree)
    if python is None:
        raise UsageError(
            f"{tree} has no GDB scripts: Linux has them since 4.0",
            hint="continue without them: everything else in `attach` works",
        )
    text = constants.by_source(tree, origin.config, what=WHAT, report=report, deadline=deadline)
    return _assemble(wanted, python, text, f"{python.directory}, constants.py by `make scripts_gdb`")


def _origin(
    wanted: Wanted, parts: Parts, source: Path | None, fetch: Fetch | None, failed: BuildError | None
) -> Source:
    """Return the source to build everything from.

    Raises:
        BuildError: there is none, and the build in a tree failed.
        UsageError: there is none.
    """
    config = script_parts.config(wanted, parts)
    path = source or parts.source
    if path is None and fetch is not None:
        fetched = fetch()
        # The configuration that the kernel was built with has priority.
        return msgspec.structs.replace(fetched, config=config or fetched.config)
    if failed is not None and source is None:
        raise failed
    if path is None:
        raise UsageError(
            f"there are no GDB scripts of {wanted.kernel.origin}: {why_unusable(wanted.vmlinux.parent)}",
            hint="give its source, or the tree that it was built in, with --source",
        )
    return Source(path=path, config=config)


def _put_together(wanted: Wanted, python: Python, generated: Path) -> Scripts:
    return _assemble(wanted, python, generated.read_text(), f"{python.directory} and {generated}")


def _assemble(wanted: Wanted, python: Python, text: str, how: str) -> Scripts:
    """Assemble a directory beside its final place, and move it when it is complete."""
    constants.refuse_reduced(text, wanted.kernel)
    target = directory(wanted)
    with cache.writing(target.parent):
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:12]}."))
        try:
            linux = partial / "scripts/gdb/linux"
            linux.mkdir(parents=True)
            for part in sorted((python.directory / "linux").glob("*.py")):
                if part.is_file():  # an O= tree has links, which dangle if its source has moved
                    shutil.copyfile(part, linux / part.name)
            (linux / "constants.py").write_text(text)
            shutil.copyfile(python.loader, partial / LOADER)
            made = _scripts(wanted, target, how)
            (partial / _RECORD).write_bytes(guest.encode(made))
            # A directory without a record was partly deleted.
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
    """Return the command that prepares the scripts of a guest."""
    words = ["vmdebug", "kernel", "scripts", spec.guest]
    for word, value in (("--kernel", options.kernel), ("--vmlinux", options.vmlinux)):
        words += [word, value] if value is not None else []
    return shlex.join(words)
