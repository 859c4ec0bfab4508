"""The kernel of the guest `builtin`: `vmdebug kernel build` builds it in the user's cache, `start` finds it.

Each combination of source, fragments and compiler has a build directory of its own. An interrupted
build continues in its directory, as make does; a complete one has a record in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmdebug import arch, cache, guest, kimage, process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError
from vmdebug.guest import Kernel
from vmdebug.progress import Report, Step, silent
from vmdebug.sources import kbuild, kernel_source
from vmdebug.sources.configuration import dotconfig, merging
from vmdebug.sources.configuration import fragments as fragment_files
from vmdebug.sources.kernels import tree

NEEDED = 1.2e9
"""Bytes of disk space that a build needs; a third of it stays in use."""

_TARGETS = ("modules", "scripts_gdb")

_RECORD = "complete.json"
_OBJECTS = 1074
"""Number of objects of Linux 6.1 with the builtin fragments: the total for the progress of a first build."""

_HEADERS = {"gelf.h": "libelf-dev", "libelf.h": "libelf-dev", "openssl/": "libssl-dev"}


class BuiltKernel(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel in the cache.

    Args:
        directory: The O= tree.
        image: The boot image.
        vmlinux: The ELF file with symbols.
        modules: lib/modules/RELEASE, made by `make modules_install`.
        config: Its `.config`.
        release: Its `uname -r`.
        source: The directory of the source that it was built from.
        origin: The directory or tarball that the user named.
        fragments: The names of its fragments.
        objects: How many objects were compiled.
        cpu_seconds: User and system time of the `make` that completed it.
    """

    directory: Path
    image: Path
    vmlinux: Path
    modules: Path
    config: Path
    release: str
    source: Path
    origin: Path
    fragments: tuple[str, ...]
    objects: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned build.

    Args:
        origin: Its source.
        directory: The O= tree.
        fragments: The names of its fragments.
        files: The files of the fragments, in the same order.
        jobs: How many compilers to run at once.
        cc: make's CC.
    """

    origin: kernel_source.Source
    directory: Path
    fragments: tuple[str, ...]
    files: tuple[Path, ...]
    jobs: int
    cc: str


def default_fragments() -> tuple[str, ...]:
    """Return the names of the fragments of the builtin kernel.

    Raises:
        HostError: vmdebug does not support this machine's architecture.
    """
    return (
        "base",
        arch.native().fragment,
        "vm-boot",
        "debug",
        "gdb",
        "modules",
        "kgdb",
        "crash",
        "root",
        "trace",
        "kunit",
    )


def built(source: Path | None = None, *, fragments: Sequence[str] | None = None) -> BuiltKernel | None:
    """Return the kernel that was built last, without starting any program.

    Args:
        source: The directory or tarball that it must be built from; None accepts any.
        fragments: The names of its fragments; None takes `default_fragments`.
    """
    names = default_fragments() if fragments is None else tuple(fragments)
    wanted = source.expanduser().resolve() if source else None
    records = cache.directory("kernel").glob(f"*/{_RECORD}")
    for path in sorted(records, key=cache.touched, reverse=True):
        found = _read(path)
        if found and found.fragments == names and wanted in (None, found.origin):
            return found
    return None


def build(
    source: Path | None = None,
    *,
    fragments: Sequence[str] | None = None,
    jobs: int | None = None,
    report: Report = silent,
    deadline: Deadline,
) -> BuiltKernel:
    """Return the kernel of a source and fragments, and build it if it is not in the cache.

    Args:
        source: A directory or a tarball; None takes `default_source`.
        fragments: Names or paths of fragments, in this order on top of `allnoconfig`; None takes
            `default_fragments`.
        jobs: How many compilers to run at once; None is one for each CPU.
        report: Receives each object.
        deadline: When to stop; the next build continues.

    Raises:
        HostError: a program, a header or disk space is missing.
        UsageError: `source` or a fragment is invalid.
        BuildError: make failed, or an option could not be set.
        DeadlineError: it took too long.
    """
    kbuild.check_tools()
    origin = kernel_source.look(source)
    names = default_fragments() if fragments is None else tuple(fragments)
    files = tuple(fragment_files.find(each) for each in names)
    name = key(origin.identity, [file.read_text() for file in files], compiler_version(deadline))
    plan = Plan(
        origin=origin,
        directory=cache.directory("kernel") / name,
        fragments=names,
        files=files,
        jobs=jobs or kbuild.jobs(),
        cc=kbuild.compiler_command(),
    )
    record = plan.directory / _RECORD
    with cache.lock(plan.directory, kbuild.BUILDING, report, deadline):
        found = _read(record)
        if found and not origin.changes:
            cache.used(record)
            return found
        tree = kernel_source.unpacked(origin, report=report, deadline=deadline)
        cache.check_space(plan.directory.parent, NEEDED)
        with cache.writing(plan.directory, NEEDED):
            plan.directory.mkdir(exist_ok=True)
            # The files are inconsistent until make has succeeded.
            record.unlink(missing_ok=True)
        done = _make(plan, tree, report, deadline)
        if not origin.changes:
            prune(plan.directory, deadline)
        cache.write(record, guest.encode(done))
    return done


def kernel(*, force: bool = False) -> Kernel:
    """Return the builtin kernel that was built last, without starting any program.

    Args:
        force: Accept files from different builds.

    Raises:
        HostError: none is found.
        MismatchError: its files are from different builds.
    """
    found = built()
    if found is None:
        raise HostError("the builtin kernel is not built yet", hint="run `vmdebug kernel build`, once")
    kimage.check(found.image, found.vmlinux, force=force)
    says = kimage.read_image(found.image)
    return Kernel(
        image=found.image,
        origin="the builtin kernel",
        arch=says.arch,
        build_id=says.build_id,
        release=found.release,
        vmlinux=found.vmlinux,
        gdb_scripts=tree.scripts(found.directory),
        modules=found.modules,
        source=tree.paths_start(found.directory),
    )


def key(identity: str, texts: Sequence[str], compiler: str) -> str:
    """Return the name of a build directory.

    Args:
        identity: The `Source.identity`.
        texts: The contents of the fragments, in order; comments are ignored.
        compiler: The version of the compiler.
    """
    asked = [f"{name}={value}" for text in texts for name, value in dotconfig.options(text).items()]
    parts = "\0".join([identity, *asked, compiler])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def compiler_version(deadline: Deadline) -> str:
    """Return the first line of `gcc --version`."""
    return process.run(
        ["gcc", "--version"], env=kbuild.clean_environment(), deadline=deadline
    ).stdout.partition("\n")[0]


def make_argv(plan: Plan, tree: Path, *targets: str) -> tuple[str, ...]:
    """Return the command that makes `targets` in a build directory."""
    return ("make", "-C", str(tree), f"O={plan.directory}", f"-j{plan.jobs}", f"CC={plan.cc}", *targets)


def prune(directory: Path, deadline: Deadline) -> None:
    """Delete the files of a build tree that only another `make` needs: four fifths of its size.

    Keep the host's programs (scripts/, tools/): building a module against the tree needs them. Remove from
    vmlinux the relocations that the linker keeps for RANDOMIZE_BASE. The boot image has its own copy of those
    that it needs (the architecture's tools/relocs.c); the others belong to debugging information. Newer
    kernels strip them too (the architecture's Makefile.postlink).

    Args:
        directory: The O= tree.
        deadline: When to stop objcopy.
    """
    for pattern in ("*.o", "*.a", ".*.cmd", ".tmp_vmlinux*"):
        for path in directory.rglob(pattern):
            if path.relative_to(directory).parts[0] not in ("scripts", "tools", "install"):
                path.unlink()
    stripped = directory / "vmlinux.stripped"
    process.run(
        strip_argv(directory / "vmlinux", stripped), env=kbuild.clean_environment(), deadline=deadline
    )
    stripped.replace(directory / "vmlinux")


def strip_argv(vmlinux: Path, stripped: Path) -> tuple[str, ...]:
    """Return the command that writes a vmlinux without relocations."""
    return ("objcopy", "--remove-section=.rela.*", "--remove-section=.rela__*", str(vmlinux), str(stripped))


def _make(plan: Plan, tree: Path, report: Report, deadline: Deadline) -> BuiltKernel:
    before, row = _cpu_seconds(), arch.native()
    report(Step(kbuild.BUILDING, note="configuring"))
    make = ("make", f"CC={plan.cc}")
    unmet = merging.merge(
        tree, plan.directory, plan.files, make=make, env=kbuild.clean_environment(), deadline=deadline
    )
    # For example pvpanic: this guest has no bus on which Linux 5.10 supports it.
    wishes = {option for name in plan.fragments for option in fragment_files.load(name).wishes}
    merging.check_met([each for each in unmet if each.option not in wishes], tree)
    objects = kbuild.ObjectCounter(_compiled(plan.directory), _total(plan.fragments), report)
    _run(plan, make_argv(plan, tree, row.image_target, *_TARGETS), objects, deadline)
    install = plan.directory / "install"
    shutil.rmtree(install, ignore_errors=True)
    _run(plan, make_argv(plan, tree, "modules_install", f"INSTALL_MOD_PATH={install}"), objects, deadline)
    release = (plan.directory / "include/config/kernel.release").read_text().strip()
    return BuiltKernel(
        directory=plan.directory,
        image=plan.directory / row.image,
        vmlinux=plan.directory / "vmlinux",
        modules=install / "lib/modules" / release,
        config=plan.directory / ".config",
        release=release,
        source=tree,
        origin=plan.origin.path,
        fragments=plan.fragments,
        objects=_compiled(plan.directory),
        cpu_seconds=_cpu_seconds() - before,
    )


def _run(plan: Plan, argv: Sequence[str], objects: kbuild.ObjectCounter, deadline: Deadline) -> None:
    done = process.run(
        argv, env=kbuild.clean_environment(), deadline=deadline, check=False, on_line=objects.line
    )
    if done.status == 0:
        return
    cache.refuse_full(done.stderr, plan.directory, NEEDED)
    for header, package in _HEADERS.items():
        if re.search(rf"{re.escape(header)}.*No such file", done.stderr):
            hint = f"install it: apt install {package}"
            raise HostError(f"the kernel's build tools need the header {header}", hint=hint)
    raise BuildError(
        f"the kernel could not be built: make ended with status {done.status}",
        hint=f"the build directory is {plan.directory}; the next build continues there",
        detail=f"{process.shell_line(argv)}\n{process.tail(done.stderr)}",
    )


def _read(record: Path) -> BuiltKernel | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        found = guest.decode(record.read_bytes(), BuiltKernel)
        if found.image.is_file() and found.vmlinux.is_file():
            return found
    return None


def _total(fragments: tuple[str, ...]) -> int | None:
    before = built(fragments=fragments)
    if before:
        return before.objects
    return _OBJECTS if fragments == default_fragments() else None


def _compiled(directory: Path) -> int:
    # kbuild writes one beside each finished object, see scripts/basic/fixdep.c.
    return sum(1 for _ in directory.rglob(".*.o.cmd"))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
