"""What a runner script expects of its surroundings, where vmdebug starts it: networks, KVM, credentials.

Rests on nixpkgs' nixos/lib/qemu-common.nix (`qemuNICFlags`) and nixos/modules/virtualisation/qemu-vm.nix
(`virtualisation.qemu.forceAccel`, `virtualisation.credentials`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from vmdebug import cache
from vmdebug.errors import HostError, UsageError
from vmdebug.spelling import option

_VLAN = re.compile(r'-netdev vde,id=([^,\s]+),sock="?\$\{?QEMU_VDE_SOCKET_(\d+)\}?"?')
_FORCED = "forceAccel is enabled"
_RELATIVE = re.compile(r"opt/io\.systemd\.credentials/([^,\s]+),file=(?![/$\"'])(\S+)")
_RELATIVE_SMBIOS = re.compile(r"io\.systemd\.credential\.binary:([^='\s]+)='?; base64 -w0 '(?![/$])([^']+)'")

KVM = Path("/dev/kvm")

KEPT = 16
"""Number of most recently used changed scripts to keep in the cache."""


def vlans(text: str, *, inherited: Mapping[str, str]) -> tuple[str, ...]:
    """Return the numbers of the test driver's networks that a script connects to but that do not exist.

    The driver runs a vde_switch for each, and passes its socket in QEMU_VDE_SOCKET_NUMBER.

    Args:
        text: The script's text.
        inherited: The script's environment.
    """
    numbers = {found[2] for found in _VLAN.finditer(text)}
    return tuple(sorted((each for each in numbers if f"QEMU_VDE_SOCKET_{each}" not in inherited), key=int))


def detached(text: str, absent: tuple[str, ...]) -> str:
    """Return a script with a separate hub for each network that does not exist.

    The guest has its interfaces, with their names and addresses, and nobody else is on them.
    """

    def hub(found: re.Match[str]) -> str:
        return f"-netdev hubport,id={found[1]},hubid={found[2]}" if found[2] in absent else found[0]

    return _VLAN.sub(hub, text)


def copy(script: Path, text: str, system: Path, where: Path) -> Path:
    """Write a changed script, with `system` beside its directory as in the original's package.

    Args:
        script: The original.
        text: The changed text.
        system: The toplevel.
        where: The directory for such scripts; each text has its own directory there.

    Returns:
        The path of the script, by the original's name.

    Raises:
        HostError: it cannot be written.
    """
    directory = where / hashlib.sha256(f"{system}\n{text}".encode()).hexdigest()[:16]
    made = directory / "bin" / script.name
    with cache.writing(where):
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = made.with_name(f".{os.getpid()}")
        partial.write_text(text)
        partial.chmod(0o755)
        partial.replace(made)
        link = directory / f".{os.getpid()}"
        link.symlink_to(system)
        link.replace(directory / "system")
        _remove_unused(where)
    return made


def _remove_unused(where: Path) -> None:
    """Delete the scripts whose system nix has deleted, and those that were used longest ago.

    A VM that runs needs its script no more, and `restart` makes it again.
    """
    newest_first = sorted(where.iterdir(), key=cache.touched, reverse=True)
    there = [each for each in newest_first if (each / "system").exists()]
    for each in set(newest_first) - set(there[:KEPT]):
        shutil.rmtree(each, ignore_errors=True)


def check_supported(text: str, *, accel: str) -> None:
    """Check that KVM works here if a script insists on it. Otherwise its VM ends, and only its log says why.

    Raises:
        HostError: the script insists on KVM, and there is none.
        UsageError: the script insists on KVM, and the user asks for TCG.
    """
    if _FORCED not in text:
        return
    hint = "set virtualisation.qemu.forceAccel = false, or qemu.forceAccel in a test, to run it under TCG"
    if accel == "tcg":
        raise UsageError(f"{option('accel', 'tcg')}: this VM has virtualisation.qemu.forceAccel", hint=hint)
    if not os.access(KVM, os.R_OK | os.W_OK):
        found = "cannot be opened" if KVM.exists() else "does not exist"
        raise HostError(f"this VM has virtualisation.qemu.forceAccel, and {KVM} {found}", hint=hint)


def notes(text: str, absent: tuple[str, ...]) -> tuple[str, ...]:
    """Return notes about a script's networks and credentials."""
    said = []
    if absent:
        which = f"vlan {absent[0]}" if len(absent) == 1 else f"vlans {', '.join(absent)}"
        said.append(
            f"{which}: no other node can be reached; the guest has the interfaces, but only the test driver"
            " connects nodes"
        )
    for name, source in (*_RELATIVE.findall(text), *_RELATIVE_SMBIOS.findall(text)):
        said.append(
            f"virtualisation.credentials.{name}.source is {source}: the script reads a relative path in the"
            " VM's own directory; give an absolute path"
        )
    return tuple(said)
