"""Records what `vmdebug deploy` has deployed to each machine, to debug the machine's kernel later.

The flake may change after the deployment. Each machine has a small file in $XDG_DATA_HOME/vmdebug, or else in
~/.local/share/vmdebug, and garbage collector roots: the system does not refer to its kernel's symbols, so
nix would delete them otherwise.
"""

from __future__ import annotations

import contextlib
import shutil
import urllib.parse
from pathlib import Path

import msgspec
import platformdirs

from vmdebug import cache, guest, paths
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel
from vmdebug.progress import silent
from vmdebug.sources import nix


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A system that was deployed to a machine.

    Args:
        host: USER@HOST.
        guest: GUEST as the user wrote it.
        toplevel: The system's store path.
        kernel: The kernel that it boots, with symbols and scripts.
    """

    host: str
    guest: str
    toplevel: Path
    kernel: Kernel


def remember(deployed: Deployment, *, deadline: Deadline) -> None:
    """Record a deployment, and protect its files from nix's garbage collector.

    Raises:
        HostError: the directory is not writable.
        BuildError: nix failed.
        DeadlineError: nix took too long.
    """
    cache.write(_file(deployed.host), guest.encode(deployed))
    roots = _directory() / "roots" / _name(deployed.host)
    with cache.writing(roots):
        shutil.rmtree(roots, ignore_errors=True)
        roots.mkdir(parents=True)
    kernel = deployed.kernel
    files = (kernel.image, kernel.vmlinux, kernel.gdb_scripts, kernel.modules, kernel.source)
    stored = {path for file in files if file is not None and (path := nix.store_path(file.resolve()))}
    if stored:
        argv = nix.keep(sorted(stored), roots / "kernel")
        nix.run(argv, what="keeping the kernel's symbols", report=silent, deadline=deadline)


def find(host: str | None) -> Deployment:
    """Return the deployment to a host; None means the only one.

    Raises:
        UsageError: there is none, there are several, or its symbols no longer exist.
    """
    known = _all()
    found = [each for each in known if host in (None, each.host)]
    names = ", ".join(each.host for each in known) or "none"
    if len(found) != 1:
        what = f"nothing was deployed to {host}" if host else "the kernel of the machine is unknown"
        raise UsageError(what, hint=f"give --guest GUEST, or --target-host; deployed to: {names}")
    vmlinux = found[0].kernel.vmlinux
    if vmlinux is not None and not vmlinux.is_file():
        raise UsageError(
            f"the symbols of the kernel on {found[0].host} no longer exist: {vmlinux}",
            hint=f"build them again: --guest {found[0].guest}",
        )
    return found[0]


def _directory() -> Path:
    return paths.of_user(platformdirs.user_data_dir, "XDG_DATA_HOME") / "deployed"


def _file(host: str) -> Path:
    return _directory() / f"{_name(host)}.json"


def _name(host: str) -> str:
    return urllib.parse.quote(host, safe="@")


def _all() -> list[Deployment]:
    found = []
    for path in sorted(_directory().glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found.append(guest.decode(path.read_bytes(), Deployment))
    return found
