"""The initial RAM file system of guests that bring none: busybox, an init, a shell on the console.

It is made without root and comes out the same, byte for byte, whenever the same
busybox, modules and scripts go in. It is not compressed: the kernel then needs no
decompressor, and copying 2 MB is quicker than inflating them under TCG.

Ending such a guest from inside: `poweroff`, or `reboot` with QEMU's `-no-reboot`. Both
ask init, which acts at once. A kernel without ACPI cannot power the machine off: there
init reboots instead, while `poweroff -f`, which goes past it, only halts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from vmdebug import arch, process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.sources import cache, cpio

READY = "vmdebug: guest ready"
"""What init prints once everything is mounted, a line by itself, before the first prompt."""

PROMPT = "~ # "
"""What the shell prints when it waits for a command in its home directory."""

_BUSYBOX = "busybox"
_PACKAGE = "busybox-static"
_FORMAT = 1
"""Raised when equal inputs must give another archive than before."""

_KEPT = 8
"""Archives that stay in the cache, the last used ones; QEMU reads its own only when it starts."""

_HERE = Path(__file__).parent
_DIRECTORIES = ("dev", "mnt", "proc", "root", "run", "sys", "tmp")
_NODES = (
    # Before init runs the kernel opens /dev/console; the others serve kernels without devtmpfs.
    cpio.node("dev/console", 5, 1),
    cpio.node("dev/null", 1, 3, 0o666),
    cpio.node("dev/zero", 1, 5, 0o666),
    cpio.node("dev/random", 1, 8, 0o666),
    cpio.node("dev/urandom", 1, 9, 0o666),
    cpio.node("dev/kmsg", 1, 11),
    cpio.node("dev/tty", 5, 0, 0o666),
)


def build(
    *,
    modules: Path | None = None,
    release: str = "",
    agent: Path | None = None,
    agent_tty: str = "",
    deadline: Deadline,
) -> Path:
    """Return the archive, from the cache where it has been made before.

    Args:
        modules: Directory whose `.ko` files and `modules.*` lists become
            /lib/modules/RELEASE, as `make modules_install` lays it out; None leaves them out.
        release: RELEASE, the kernel's `uname -r`; needed with `modules`.
        agent: The program that runs commands for the host; None leaves it out.
        agent_tty: The serial port that the agent takes where the kernel has no virtio console: "ttyS3".
        deadline: When asking busybox for its programs is given up.

    Raises:
        HostError: busybox is missing or needs shared libraries, or the cache cannot be written.
        DeadlineError: busybox did not answer in time.
    """
    busybox = process.find(_BUSYBOX, package=_PACKAGE)
    program = busybox.read_bytes()
    files = [*_scripts(), *_agent(agent, agent_tty), *_modules(modules, release)]
    target = cache.directory("initramfs") / f"{_key(program, files)}.cpio"
    if cache.used(target):
        return target
    check_static(busybox)
    entries = [*files, *_nodes(), *map(cpio.directory, _DIRECTORIES)]
    entries += [cpio.file("bin/busybox", program, 0o755), *_applets(busybox, deadline)]
    cache.write(target, cpio.archive(entries))
    cache.keep_newest(target.parent, "*.cpio", _KEPT)
    return target


def check_static(busybox: Path) -> None:
    """Make sure that a program runs where there are no libraries.

    Raises:
        HostError: it names a dynamic loader (PT_INTERP, see elf(5)), or is no ELF file.
    """
    from elftools.common.exceptions import ELFError  # noqa: PLC0415 - 30 ms, and seldom needed
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - as above

    hint = f"install a static one: apt install {_PACKAGE}"
    try:
        with busybox.open("rb") as stream:
            dynamic = any(segment["p_type"] == "PT_INTERP" for segment in ELFFile(stream).iter_segments())
    except ELFError as error:
        raise HostError(f"{busybox} is no ELF program: {error}", hint=hint) from error
    if dynamic:
        raise HostError(f"{busybox} needs shared libraries, which an initramfs does not have", hint=hint)


def _nodes() -> tuple[cpio.Entry, ...]:
    consoles = (cpio.node(f"dev/{row.console}", *row.console_device) for row in arch.rows())
    return (*_NODES, *consoles)


def _applets(busybox: Path, deadline: Deadline) -> list[cpio.Entry]:
    listed = process.run([busybox, "--list-full"], deadline=deadline).stdout.split()
    return [cpio.link(path, "/bin/busybox") for path in listed if path != "bin/busybox"]


def _scripts() -> list[cpio.Entry]:
    return [
        cpio.file("init", (_HERE / "init.sh").read_bytes(), 0o755),
        cpio.file("etc/console", (_HERE / "console.sh").read_bytes(), 0o755),
        cpio.file("etc/shell", (_HERE / "shell.sh").read_bytes()),
        # Without them `id` and `ls -l` have numbers only.
        cpio.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n"),
        cpio.file("etc/group", b"root:x:0:\n"),
    ]


def _agent(program: Path | None, tty: str) -> list[cpio.Entry]:
    if program is None:
        return []
    line = f"/dev/{tty}\n" if tty else ""
    return [
        cpio.file("bin/vmdebug-agent", program.read_bytes(), 0o755),
        cpio.file("etc/agent-tty", line.encode()),
    ]


def _modules(directory: Path | None, release: str) -> list[cpio.Entry]:
    if directory is None:
        return []
    # `build` and `source` are links to the kernel tree, which the guest does not have.
    found = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return [
        cpio.file(f"lib/modules/{release}/{path.relative_to(directory).as_posix()}", path.read_bytes())
        for path in found
    ]


def _key(program: bytes, files: Iterable[cpio.Entry]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {_DIRECTORIES} {_nodes()}".encode())
    digest.update(hashlib.sha256(program).digest())
    digest.update(hashlib.sha256(cpio.archive(files)).digest())
    return digest.hexdigest()[:16]
