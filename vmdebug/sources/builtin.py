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

from vmdebug import guest, kimage, process
from vmdebug.arch import X86_64
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError
from vmdebug.guest import Kernel
from vmdebug.progress import Report, Step, silent
from vmdebug.sources import cache, kbuild, kernel_source
from vmdebug.sources.configuration import dotconfig, merging
from vmdebug.sources.configuration import fragments as fragment_files
from vmdebug.sources.kernels import tree

NEEDED = 1.2e9
"""Bytes that a build takes while it runs; a third of it stays."""

FRAGMENTS = ("base", "x86", "vm-boot", "debug", "gdb", "modules", "kgdb", "crash")
"""The fragments of the builtin kernel."""

TARGETS = ("bzImage", "modules", "scripts_gdb")

_RECORD = "complete.json"
_OBJECTS = 929
"""Objects of the builtin fragments with Linux 6.1: the total shown until a build here has counted its own."""

_HEADERS = {"gelf.h": "libelf-dev", "libelf.h": "libelf-dev", "openssl/": "libssl-dev"}


class BuiltKernel(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel in the cache.

    Args:
        directory: The O= tree.
        image: The boot image.
        vmlinux: The ELF file with symbols.
        modules: lib/modules/RELEASE, as `make modules_install` makes it.
        config: The configuration.
        release: Its `uname -r`.
        source: The source that it was built from, unpacked.
        origin: What the user named: a directory or a tarball.
        fragments: Names of its fragments.
        objects: How many were compiled.
        cpu_seconds: User and system time of the `make` that finished it.
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
    """A build to be done.

    Args:
        origin: What it is built from.
        directory: The O= tree.
        fragments: Names of its fragments.
        files: The fragments, in the same order.
        jobs: Compilers at once.
        cc: make's CC.
    """

    origin: kernel_source.Source
    directory: Path
    fragments: tuple[str, ...]
    files: tuple[Path, ...]
    jobs: int
    cc: str


def built(source: Path | None = None, *, fragments: Sequence[str] = FRAGMENTS) -> BuiltKernel | None:
    """Return the kernel that was built last, without starting any program.

    Args:
        source: Only one built from this directory or tarball; None takes any.
        fragments: Names of its fragments.
    """
    wanted = source.expanduser().resolve() if source else None
    records = cache.directory("kernel").glob(f"*/{_RECORD}")
    for path in sorted(records, key=cache.touched, reverse=True):
        found = _read(path)
        if found and found.fragments == tuple(fragments) and wanted in (None, found.origin):
            return found
    return None


def build(
    source: Path | None = None,
    *,
    fragments: Sequence[str] = FRAGMENTS,
    jobs: int | None = None,
    report: Report = silent,
    deadline: Deadline,
) -> BuiltKernel:
    """Build a kernel, or return it where that has been done.

    Args:
        source: Directory or tarball; None takes `default_source`.
        fragments: Names of ours, or paths, applied in this order over `allnoconfig`.
        jobs: Compilers at once; None starts one a CPU.
        report: Told each object.
        deadline: When the build is given up; the next one goes on from there.

    Raises:
        HostError: a program, a header or space is missing.
        UsageError: `source` or a fragment is not one.
        BuildError: the compiler failed, or an option did not come about.
        DeadlineError: it took too long.
    """
    kbuild.check_tools()
    origin = kernel_source.look(source)
    files = tuple(fragment_files.find(name) for name in fragments)
    name = key(origin.identity, [file.read_text() for file in files], compiler_version(deadline))
    plan = Plan(
        origin=origin,
        directory=cache.directory("kernel") / name,
        fragments=tuple(fragments),
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
            # What is there does not belong together until make has come to its end.
            record.unlink(missing_ok=True)
        done = _make(plan, tree, report, deadline)
        if not origin.changes:
            prune(plan.directory, deadline)
        cache.write(record, guest.encode(done))
    return done


def kernel(*, force: bool = False) -> Kernel:
    """Return the builtin kernel that was built last; nothing is started to find it.

    Args:
        force: Take files of different builds.

    Raises:
        HostError: none is found.
        MismatchError: its files are of different builds.
    """
    found = built()
    if found is None:
        raise HostError("the builtin kernel is not built yet", hint="run `vmdebug kernel build`, once")
    kimage.check(found.image, found.vmlinux, force=force)
    return Kernel(
        image=found.image,
        origin="the builtin kernel",
        arch=X86_64.name,
        build_id=kimage.read_image(found.image).build_id,
        release=found.release,
        vmlinux=found.vmlinux,
        gdb_scripts=tree.scripts(found.directory),
        modules=found.modules,
        source=tree.paths_start(found.directory),
    )


def key(identity: str, texts: Sequence[str], compiler: str) -> str:
    """Return the name of a build's directory.

    Args:
        identity: Of the source.
        texts: The fragments' contents, in order; comments do not count.
        compiler: What it says about itself.
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
    """Return the command that makes `targets` of the source `tree` in the directory of a build."""
    return ("make", "-C", str(tree), f"O={plan.directory}", f"-j{plan.jobs}", f"CC={plan.cc}", *targets)


def prune(directory: Path, deadline: Deadline) -> None:
    """Delete what only another `make` in a build tree would need: four fifths of its size.

    The host's programs stay (scripts/, tools/): modules are built against the tree with them.
    vmlinux loses the relocations that the linker leaves in it for RANDOMIZE_BASE. The boot
    image has its own copy of those that count (arch/x86/tools/relocs.c), the others are for
    debug information; newer kernels strip them too (arch/x86/Makefile.postlink).

    Args:
        directory: The O= tree.
        deadline: When objcopy is given up.
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
    before = _cpu_seconds()
    report(Step(kbuild.BUILDING, note="configuring"))
    make = ("make", f"CC={plan.cc}")
    unmet = merging.merge(
        tree, plan.directory, plan.files, make=make, env=kbuild.clean_environment(), deadline=deadline
    )
    # The wish for pvpanic, say, which Linux 5.10 has on no bus of this guest's.
    wishes = {option for name in plan.fragments for option in fragment_files.load(name).wishes}
    merging.refuse([each for each in unmet if each.option not in wishes], tree)
    objects = kbuild.ObjectCounter(_compiled(plan.directory), _total(plan.fragments), report)
    _run(plan, make_argv(plan, tree, *TARGETS), objects, deadline)
    install = plan.directory / "install"
    shutil.rmtree(install, ignore_errors=True)
    _run(plan, make_argv(plan, tree, "modules_install", f"INSTALL_MOD_PATH={install}"), objects, deadline)
    release = (plan.directory / "include/config/kernel.release").read_text().strip()
    return BuiltKernel(
        directory=plan.directory,
        image=plan.directory / X86_64.image,
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
            raise HostError(f"the kernel's own tools need the header {header}", hint=hint)
    raise BuildError(
        f"the kernel did not build: make ended with status {done.status}",
        hint=f"its directory is {plan.directory}; the next build goes on there",
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
    return _OBJECTS if fragments == FRAGMENTS else None


def _compiled(directory: Path) -> int:
    # Kbuild writes one beside each object when that is done, see scripts/basic/fixdep.c.
    return sum(1 for _ in directory.rglob(".*.o.cmd"))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
