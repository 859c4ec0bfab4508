"""ssh into a guest: prepares an sshd in it, and writes a configuration for ssh, scp, rsync and editors.

Each VM has keys of its own, in RUNTIME/NAME/ssh: one that logs in, and one by which the guest is known, so
ssh asks no question. The guest gets them through its shell. vmdebug starts the sshd of the guest's root file
system with a configuration in /run; an sshd that already runs there stays as it is.

ssh connects through a port of the host, if the guest is on QEMU's user network. Otherwise it connects
through the guest's shell, which needs no network: `sshd -i` serves one connection on its stdin and stdout.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug import locks, network, process
from vmdebug.channel.shell import Streams
from vmdebug.deadline import Deadline
from vmdebug.errors import VmError
from vmdebug.network import LOCALHOST, Forward
from vmdebug.vm import Vm

SSH_SECONDS = 60.0
"""How long preparing a guest may take, including the rest of its boot."""

_PACKAGE = "openssh-client"
_PREPARE = Path(__file__).with_name("ssh.sh")
_NO_SSHD = 120
_NOT_STARTED = 121
_NETDEV = re.compile(r"^\s*Hub \S+ \((\S+)\):", re.MULTILINE)


Mode = Literal["listen", "check", "serve"]
"""What the script does with sshd: starts it, nothing, or runs it for one connection; see ssh.sh."""


class Files(msgspec.Struct, frozen=True):
    """The files for ssh in a VM's run directory.

    Args:
        directory: RUNTIME/NAME/ssh.
    """

    directory: Path

    @property
    def key(self) -> Path:
        """The private key that logs in; its public key is beside it."""
        return self.directory / "key"

    @property
    def host_key(self) -> Path:
        """The private key of the guest's sshd; its public key is beside it."""
        return self.directory / "host_key"

    @property
    def known_hosts(self) -> Path:
        """The file that names the public key of the guest's sshd."""
        return self.directory / "known_hosts"

    @property
    def config(self) -> Path:
        """The configuration for ssh; its Host is the VM's name."""
        return self.directory / "config"


def files(vm: Vm) -> Files:
    """Return the paths of a VM's files for ssh; no I/O."""
    return Files(vm.rundir.path / "ssh")


def configure(vm: Vm, *, deadline: Deadline) -> Path:
    """Prepare a guest for ssh, and return the configuration: `ssh -F PATH NAME`.

    It is valid until the VM ends. After a snapshot from before the first call is loaded, call this again.

    Args:
        vm: The VM; its guest must run.
        deadline: When to give up.

    Raises:
        HostError: this machine has no ssh-keygen.
        StateError: the guest does not run.
        VmError: the guest has no sshd, or it does not start.
        GuestDiedError: the guest panicked or exited.
        DeadlineError: it took too long.
    """
    found = files(vm)
    with locks.held(vm.rundir.path / "ssh.lock", what="another ssh to prepare the guest", deadline=deadline):
        _make_keys(found, vm.name, deadline)
        port = _port(vm, found, deadline)
        text = config(vm.name, found, port)
        if not found.config.exists() or found.config.read_text() != text:
            found.config.write_text(text)
    return found.config


def serve(vm: Vm, streams: Streams, *, deadline: Deadline) -> int:
    """Serve one ssh connection through the guest's shell, and return the exit status of sshd.

    Args:
        vm: The VM.
        streams: The connection.
        deadline: When to give up preparing the guest; the connection itself has no time limit.

    Raises:
        VmdebugError: see `configure`.
    """
    found = files(vm)
    with locks.held(vm.rundir.path / "ssh.lock", what="another ssh to prepare the guest", deadline=deadline):
        _make_keys(found, vm.name, deadline)
        script = _script(found, "serve")
    return vm.shell.run(script, streams=streams, deadline=Deadline.after(_CONNECTION_SECONDS)).status


_CONNECTION_SECONDS = 10 * 365 * 86400.0


def config(name: str, found: Files, port: Forward | None) -> str:
    """Return the configuration for ssh; see ssh_config(5).

    Args:
        name: The VM's name.
        found: Its files.
        port: The port of the host that is forwarded to the guest's sshd; None: connect through its shell.
    """
    lines = [
        *(_through_port(port) if port is not None else (f"ProxyCommand {_proxy(name)}",)),
        "User root",
        f"IdentityFile {_quoted(found.key)}",
        "IdentitiesOnly yes",
        "IdentityAgent none",
        f"HostKeyAlias {name}",
        f"UserKnownHostsFile {_quoted(found.known_hosts)}",
        "GlobalKnownHostsFile none",
        "StrictHostKeyChecking yes",
        "UpdateHostKeys no",
        "LogLevel ERROR",
    ]
    return f"Host {name}\n" + "".join(f"    {line}\n" for line in lines)


def _through_port(port: Forward) -> tuple[str, ...]:
    anywhere = port.address == "0.0.0.0"  # noqa: S104 - only compared
    return (f"HostName {LOCALHOST if anywhere else port.address}", f"Port {port.host}")


def _proxy(name: str) -> str:
    """Return the command that connects through the guest's shell; ssh runs it in the user's shell."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    env = ("env", f"XDG_RUNTIME_DIR={runtime}") if runtime else ()
    words = (*env, sys.executable, "-m", "vmdebug.cli", "ssh", "--stdio", name)
    return shlex.join(words).replace("%", "%%")


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'


def _make_keys(found: Files, name: str, deadline: Deadline) -> None:
    found.directory.mkdir(mode=0o700, exist_ok=True)
    if found.known_hosts.exists():
        return
    keygen = process.find("ssh-keygen", package=_PACKAGE)
    for path in (found.key, found.host_key):
        path.unlink(missing_ok=True)
        process.run(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-C", f"vmdebug {name}", "-f", path], deadline=deadline
        )
    kind, key, *_ = _public(found.host_key).split()
    found.known_hosts.write_text(f"{name} {kind} {key}\n")


def _public(key: Path) -> str:
    return key.with_name(f"{key.name}.pub").read_text()


def _port(vm: Vm, found: Files, deadline: Deadline) -> Forward | None:
    """Return the port of the host that leads to the guest's sshd; None if the guest has no user network."""
    usernet = _monitor(vm, "info usernet")
    netdev = _NETDEV.search(usernet)
    if netdev is None:
        _prepare(vm, found, "check", deadline)
        return None
    guest = int(_prepare(vm, found, "listen", deadline))
    if (there := _forwarded(usernet, guest)) is not None:
        return there
    rule = Forward(guest=guest).rule
    if refused := _monitor(vm, f"hostfwd_add {netdev[1]} {rule}").strip():
        raise VmError(f"QEMU does not forward a port to {vm.name}: {refused}")
    made = _forwarded(_monitor(vm, "info usernet"), guest)
    if made is None:
        raise VmError(f"QEMU does not say which port it forwards to {vm.name}")
    return made


def _forwarded(usernet: str, guest: int) -> Forward | None:
    ports = network.read_forwards(usernet)
    return next((each for each in ports if each.protocol == "tcp" and each.guest == guest), None)


def _monitor(vm: Vm, command: str) -> str:
    with vm.connected() as qmp:
        return str(qmp.execute("human-monitor-command", {"command-line": command}))


def _script(found: Files, mode: Mode) -> str:
    """Return the shell script that prepares a guest, gives it its keys, and runs sshd."""
    values = {
        "mode": mode,
        "authorized": _public(found.key).strip(),
        "host_key": found.host_key.read_text().strip(),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    return "\n".join((*lines, _PREPARE.read_text()))


def _prepare(vm: Vm, found: Files, mode: Mode, deadline: Deadline) -> str:
    """Prepare a guest, and return what the script prints: the port, if sshd listens."""
    done = vm.exec(_script(found, mode), timeout=deadline.left("the guest to start sshd"))
    if done.status == _NO_SSHD:
        raise VmError(
            f"{vm.name} has no sshd: it is not on the PATH of its shell, nor in /usr/sbin",
            hint="install openssh-server in the root file system (debian:SUITE has it); vmdebug exec, cp and"
            " console need none",
        )
    if done.status != 0:
        what = "sshd of {} does not start" if done.status == _NOT_STARTED else "{} cannot be prepared for ssh"
        raise VmError(what.format(vm.name), detail=(done.stderr or done.stdout).strip())
    return done.stdout.strip()
