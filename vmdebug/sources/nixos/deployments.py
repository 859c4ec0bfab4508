"""What `vmdebug deploy` brought to which machine, so that its kernel can be debugged there later.

A flake moves on; a machine runs what it was given. One small file a machine, below
$XDG_DATA_HOME/vmdebug, else ~/.local/share/vmdebug, and roots of nix's garbage collector: a
kernel's symbols are no part of the system, so that nothing else would keep them.
"""

from __future__ import annotations

import contextlib
import shutil
import urllib.parse
from pathlib import Path

import msgspec
import platformdirs

from vmdebug import guest
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel
from vmdebug.progress import silent
from vmdebug.sources import cache, nix


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A system on a machine.

    Args:
        host: USER@HOST.
        guest: GUEST as its user wrote it.
        toplevel: The system's store path.
        kernel: What it boots, with what belongs to it here.
    """

    host: str
    guest: str
    toplevel: Path
    kernel: Kernel


def remember(deployed: Deployment, *, deadline: Deadline) -> None:
    """Write down what a machine has now, and keep what of it lies in a store.

    Raises:
        HostError: the directory is not ours to write.
        BuildError: nix could not keep it.
        DeadlineError: that took too long.
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
    """Return what was deployed to a host; to the only one, where None is given.

    Raises:
        UsageError: there is none, there are several, or what it had is no longer here.
    """
    known = _all()
    found = [each for each in known if host in (None, each.host)]
    names = ", ".join(each.host for each in known) or "none"
    if len(found) != 1:
        what = f"nothing was deployed to {host}" if host else "it is not said which kernel the machine runs"
        raise UsageError(what, hint=f"give --guest GUEST, or --target-host; deployed to: {names}")
    vmlinux = found[0].kernel.vmlinux
    if vmlinux is not None and not vmlinux.is_file():
        raise UsageError(
            f"the symbols of what {found[0].host} runs are no longer there: {vmlinux}",
            hint=f"get them back: --guest {found[0].guest}",
        )
    return found[0]


def _directory() -> Path:
    return Path(platformdirs.user_data_dir("vmdebug")) / "deployed"


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
