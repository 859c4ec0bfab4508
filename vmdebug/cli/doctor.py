"""`vmdebug doctor`: checks what vmdebug needs on this machine, and how to get what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from vmdebug import process
from vmdebug.cli import render, verb
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, VmdebugError

PROGRAM_SECONDS = 20.0
"""How long a program may take to print its version."""

CACHE_GB = 3
"""Room for a kernel source, one build of it and the compiler's cache."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Args:
        name: What was checked.
        use: What it is needed for; "" if it is always needed.
        ok: Whether it is usable.
        required: Whether doctor fails without it.
        found: What was found, in one line.
        hint: How to get it; "" if it is usable.
    """

    name: str
    use: str
    ok: bool
    required: bool
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to look for on PATH and ask for its version."""

    name: str
    package: str
    use: str = ""
    required: bool = True
    version: tuple[str, ...] = ("--version",)


KERNEL = "building the builtin kernel"
PROGRAMS = (
    Program("qemu-img", "qemu-utils", "disks", required=False),
    Program("nix", "nix-bin", "guests from flakes", required=False),
    Program("make", "make", KERNEL),
    Program("gcc", "gcc", f"{KERNEL}, and the guest's agent"),
    Program("flex", "flex", KERNEL),
    Program("bison", "bison", KERNEL),
    Program("bc", "bc", KERNEL),
    Program("xz", "xz-utils", KERNEL),
    Program("depmod", "kmod", "the modules of guests"),
    Program("mmdebstrap", "mmdebstrap", "start --root debian:SUITE", required=False),
    Program("skopeo", "skopeo", "start --root docker://NAME", required=False),
    Program("rsync", "rsync", "kselftest", required=False),
    Program("ssh", "openssh-client", "vmdebug ssh", required=False),
    Program("ccache", "ccache", "building kernels again quickly", required=False),
)

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug doctor", "vmdebug doctor --json | jq '.[] | select(.ok | not)'"),
)
def doctor(
    *,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only what is missing and required.")
    ] = False,
    as_json: verb.Json = False,
) -> None:
    """Check what this machine needs, and how to get it.

    Exits with status 3 if something required is missing.
    """
    checks = list(everything())
    if as_json:
        render.put_json([asdict(check) for check in checks])
    else:
        for check in checks:
            if not (quiet and (check.ok or not check.required)):
                render.put(_line(check))
    lacking = [check for check in checks if check.required and not check.ok]
    if lacking:
        raise typer.Exit(HostError.exit_status)


def _line(check: Check) -> str:
    mark = "ok" if check.ok else "MISSING" if check.required else "no"
    use = f"for {check.use}: " if check.use and not check.ok else ""
    hint = f"\n{'':29}{check.hint}" if check.hint else ""
    return f"{mark:>7}  {check.name:<18}  {use}{check.found}{hint}"


def everything() -> Iterator[Check]:
    """Run all checks, one after the other."""
    yield python()
    yield emulator()
    for row in PROGRAMS:
        yield program(row)
    yield gdb()
    yield drgn()
    yield busybox()
    yield from headers()
    yield kernel_source()
    yield kvm()
    yield runtime()
    yield cache()


def python() -> Check:
    """Check the version of Python."""
    ok = sys.version_info >= (3, 11)
    return Check(
        "python", "", ok, True, platform.python_version(), "" if ok else "vmdebug needs 3.11 or newer"
    )


def emulator() -> Check:
    """Look for the QEMU that runs guests of this machine's architecture."""
    from vmdebug import arch

    try:
        row = arch.native()
    except HostError as error:
        return Check("qemu", "", False, True, error.message, error.hint)
    return program(Program(row.qemu, row.qemu_package))


def program(row: Program) -> Check:
    """Look for a program on PATH."""
    # depmod is in a directory that only root has on PATH.
    path = shutil.which(row.name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        return Check(row.name, row.use, False, row.required, "not on PATH", _apt(row.package))
    try:
        said = _output(path, *row.version)
    except VmdebugError as error:
        return Check(row.name, row.use, False, row.required, f"{path}: {error.message}", _apt(row.package))
    return Check(row.name, row.use, True, row.required, f"{said.splitlines()[0] if said else ''}  {path}")


GDB_NEEDS = ("MICommand", "BreakpointLocation")
"""What code in GDB uses of its Python: GDB 13.1 has the last of them."""


def gdb() -> Check:
    """Check that GDB has Python, and in it what vmdebug's code in GDB needs."""
    from vmdebug.debugger import startup

    path = shutil.which("gdb")
    if path is None:
        return Check("gdb", "", False, True, "not on PATH", _apt("gdb"))
    ask = (
        f"python import sys; lacks = [name for name in {GDB_NEEDS} if not hasattr(gdb, name)]; print('GDB',"
        " gdb.VERSION, *(('lacks', *lacks) if lacks else ('with Python', sys.version.split()[0])))"
    )
    try:
        said = _output(path, "-nx", "-batch", "-ex", ask, env=startup.environment()).strip()
    except VmdebugError as error:
        return Check("gdb", "", False, True, f"{path}: {error.message}", _apt("gdb"))
    hint = "vmdebug needs GDB 13.1 or newer, built with Python"
    if not said.startswith("GDB "):
        return Check("gdb", "", False, True, f"{path} has no Python", hint)
    if " lacks " in said:
        version, _, lacks = said.partition(" lacks ")
        return Check("gdb", "", False, True, f"{version}  {path}: its Python lacks {lacks}", hint)
    return Check("gdb", "", True, True, f"{said}  {path}")


def drgn() -> Check:
    """Look for drgn, without importing it."""
    from importlib import metadata

    from vmdebug import extras

    try:
        return Check("drgn", "drgn and dumps", True, False, metadata.version("drgn"))
    except metadata.PackageNotFoundError:
        return Check("drgn", "drgn and dumps", False, False, "not installed", extras.DRGN.install)


def busybox() -> Check:
    """Look for a static busybox."""
    from vmdebug.sources import initramfs

    use = "the initramfs of trees, images and builtin"

    def look() -> str:
        path = process.find("busybox", package="busybox-static")
        initramfs.check_static(path)
        return f"static  {path}"

    return _from("busybox", use, look)


def kernel_source() -> Check:
    """Look for the source of the builtin kernel."""
    from vmdebug.sources.kernel_source import default_source

    return _from("kernel source", KERNEL, lambda: str(default_source()))


def headers() -> Iterator[Check]:
    """Look for the headers that the kernel's build tools need."""
    compiler = shutil.which("gcc")
    for header, package in (("gelf.h", "libelf-dev"), ("openssl/opensslv.h", "libssl-dev")):
        if compiler is None:
            found = "gcc is needed to look for it"
        else:
            try:
                _output(compiler, "-fsyntax-only", "-include", header, "-x", "c", os.devnull)
            except VmdebugError:
                found = f"{header} is not found by gcc"
            else:
                yield Check(package, KERNEL, True, True, header)
                continue
        yield Check(package, KERNEL, False, True, found, _apt(package))


def kvm() -> Check:
    """Check whether KVM works here, and if not, why."""
    from vmdebug.vm import accel

    return _from("kvm", "speed", accel.kvm_state, required=False)


def runtime() -> Check:
    """Check the directory for the sockets of VMs."""
    from vmdebug.vm import runtime_directory

    return _from("runtime directory", "", lambda: str(runtime_directory.root()))


def cache() -> Check:
    """Check the space for kernel builds."""
    from vmdebug import cache as place

    try:
        directory = place.directory("")
    except VmdebugError as error:
        return Check("cache", "", False, True, error.message, error.hint)
    nearest = next(each for each in (directory, *directory.parents) if each.exists())
    free = shutil.disk_usage(nearest).free / 1e9
    found = f"{free:.1f} GB free  {directory}"
    if not os.access(nearest, os.W_OK):
        hint = "set XDG_CACHE_HOME to a directory that you can write to"
        return Check("cache", "", False, True, f"cannot write to {nearest}", hint)
    if free < CACHE_GB:
        hint = f"a kernel build takes about {CACHE_GB} GB: free some, or set XDG_CACHE_HOME"
        return Check("cache", KERNEL, False, False, found, hint)
    return Check("cache", "", True, True, found)


def _from(name: str, use: str, look: Callable[[], str], *, required: bool = True) -> Check:
    """Return the result of a check that returns what it found, or raises what is missing."""
    try:
        return Check(name, use, True, required, look())
    except VmdebugError as error:
        return Check(name, use, False, required, error.message, error.hint)


def _apt(package: str) -> str:
    return f"apt install {package}"


def _output(*argv: str, env: Mapping[str, str] | None = None) -> str:
    return process.run(argv, env=env, deadline=Deadline.after(PROGRAM_SECONDS)).stdout
