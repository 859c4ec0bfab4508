"""Builds vmdebug's initramfs: busybox, an init script, the agent, and a shell on the console.

The build needs no root, and is reproducible: the same inputs give the same bytes.
The archive is not compressed, so the kernel needs no decompressor; under TCG, copying 2 MB is faster than
decompressing it.

To end such a guest from inside, run `poweroff`, or `reboot` if QEMU has `-no-reboot`; both signal init. A
kernel without ACPI cannot power the machine off, so init reboots it instead. `poweroff -f` bypasses init, and
only halts such a kernel.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmdebug import arch, cache, process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.guest import Root, Share
from vmdebug.sources import cpio

READY = "vmdebug: guest ready"
"""The line that init prints when all file systems are mounted, before the first prompt."""

PROMPT = "~ # "
"""The shell's prompt in its home directory."""

_BUSYBOX = "busybox"
_PACKAGE = "busybox-static"
_FORMAT = 1
"""Increase it when the same inputs must give a different archive."""

_KEPT = 8
"""Number of most recently used archives to keep in the cache; QEMU reads one only when it starts."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The name of a variable, as a shell takes it."""

_HERE = Path(__file__).parent
_DIRECTORIES = ("dev", "mnt", "proc", "root", "run", "sys", "tmp")
_NODES = (
    # The kernel opens /dev/console before it runs init; the other nodes are for kernels without devtmpfs.
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
    agent: Path | None = None,
    agent_tty: str = "",
    root: Root | None = None,
    shares: Sequence[Share] = (),
    deadline: Deadline,
) -> Path:
    """Return the archive, and build it unless the cache has it.

    Args:
        modules: The archive with the guest's modules, which is appended; or None. Its name changes with its
            contents.
        agent: The agent's binary, or None.
        agent_tty: The serial port that the agent uses if the kernel has no virtio console: "ttyS3".
        root: The root file system that its init mounts and starts; None: it is the root file system itself.
        shares: The directories of this machine that its init mounts.
        deadline: When to give up waiting for busybox to list its applets.

    Raises:
        HostError: busybox is missing or needs shared libraries, or the cache cannot be written.
        DeadlineError: busybox took too long.
    """
    busybox = process.find(_BUSYBOX, package=_PACKAGE)
    program = busybox.read_bytes()
    files = [*_scripts(), *_agent(agent, agent_tty), *_root(root), *_shares(shares)]
    target = cache.directory("initramfs") / f"{_key(program, files, modules)}.cpio"
    if cache.used(target):
        return target
    check_static(busybox)
    entries = [*files, *_nodes(), *map(cpio.directory, _DIRECTORIES)]
    entries += [cpio.file("bin/busybox", program, 0o755), *_applets(busybox, deadline)]
    # The kernel unpacks one archive after the other: see buffer-format.rst.
    appended = modules.read_bytes() if modules is not None else b""
    cache.write(target, cpio.archive(entries) + appended)
    cache.keep_newest(target.parent, "*.cpio", _KEPT)
    return target


def check_static(busybox: Path) -> None:
    """Check that a program is statically linked.

    Raises:
        HostError: the program has a dynamic loader (PT_INTERP, see elf(5)), or is not an ELF file.
    """
    from elftools.common.exceptions import ELFError  # noqa: PLC0415 - takes 30 ms, and is rarely needed
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - as above

    hint = f"install a static one: apt install {_PACKAGE}"
    try:
        with busybox.open("rb") as stream:
            dynamic = any(segment["p_type"] == "PT_INTERP" for segment in ELFFile(stream).iter_segments())
    except ELFError as error:
        raise HostError(f"{busybox} is not an ELF program: {error}", hint=hint) from error
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
        cpio.file("etc/load-modules", (_HERE / "modules.sh").read_bytes()),
        cpio.file("etc/console", (_HERE / "console.sh").read_bytes(), 0o755),
        cpio.file("etc/shell", (_HERE / "shell.sh").read_bytes()),
        cpio.file("etc/net", (_HERE / "net.sh").read_bytes()),
        cpio.file("etc/dhcp", (_HERE / "dhcp.sh").read_bytes(), 0o755),
        # For the names that `id` and `ls -l` print.
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


def _root(root: Root | None) -> list[cpio.Entry]:
    """Return the script that switches to a root file system, and what it has to know, as shell variables."""
    if root is None:
        return []
    said = {
        "type": root.file_system,
        "partition": str(root.partition or ""),
        "keep": "yes" if root.keep else "",
        "init": root.init,
        "login": "yes" if root.login else "",
    }
    lines = "".join(f"root_{name}={shlex.quote(value)}\n" for name, value in said.items())
    return [
        cpio.file("etc/root", lines.encode()),
        cpio.file("etc/environment", _environment(root).encode()),
        cpio.file("etc/switch", (_HERE / "switch.sh").read_bytes()),
        cpio.file("etc/serve", (_HERE / "serve.sh").read_bytes(), 0o755),
    ]


def _environment(root: Root) -> str:
    """Return what a container image says about its processes, as lines for a shell."""
    known = [each.partition("=") for each in root.environment]
    lines = [f"export {name}={shlex.quote(value)}\n" for name, _, value in known if _NAME.fullmatch(name)]
    place = f"directory={shlex.quote(root.directory)}\n" if root.directory else ""
    return "".join((*lines, place))


def _shares(shares: Sequence[Share]) -> list[cpio.Entry]:
    """Return the script that mounts shared directories, and their list."""
    if not shares:
        return []
    lines = [f"{each.tag} {each.transport} {each.mode} {each.mount_point}\n" for each in shares]
    return [
        cpio.file("etc/shares", "".join(lines).encode()),
        cpio.file("etc/share", (_HERE / "share.sh").read_bytes()),
    ]


def _key(program: bytes, files: Iterable[cpio.Entry], modules: Path | None) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {_DIRECTORIES} {_nodes()} {modules}".encode())
    digest.update(hashlib.sha256(program).digest())
    digest.update(hashlib.sha256(cpio.archive(files)).digest())
    return digest.hexdigest()[:16]
