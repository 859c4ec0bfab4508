"""The configuration and the keys of `vmdebug ssh`, without a guest."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from vmdebug import cli, process, ssh
from vmdebug.deadline import Deadline
from vmdebug.network import Forward
from vmdebug.ssh import Files

FILES = Files(Path("/run/user/1/100%/vm/ssh"))

COMMON = """\
    User root
    IdentityFile "/run/user/1/100%%/vm/ssh/key"
    IdentitiesOnly yes
    IdentityAgent none
    HostKeyAlias vm
    UserKnownHostsFile "/run/user/1/100%%/vm/ssh/known_hosts"
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    UpdateHostKeys no
    LogLevel ERROR
"""


def test_through_a_port() -> None:
    whole = f"Host vm\n    HostName 127.0.0.1\n    Port 4022\n{COMMON}"
    assert ssh.config("vm", FILES, Forward(host=4022, guest=22)) == whole
    anywhere = Forward(host=4022, guest=22, address="0.0.0.0")  # noqa: S104 - only printed
    assert ssh.config("vm", FILES, anywhere) == whole
    other = Forward(host=4022, guest=22, address="127.0.0.2")
    assert "    HostName 127.0.0.2\n" in ssh.config("vm", FILES, other)


def test_through_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    proxy = f"{shlex.quote(sys.executable)} -m vmdebug.cli ssh --stdio vm"
    assert ssh.config("vm", FILES, None) == f"Host vm\n    ProxyCommand {proxy}\n{COMMON}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/a b/%")
    line = f"    ProxyCommand env 'XDG_RUNTIME_DIR=/a b/%%' {proxy}\n"
    assert line in ssh.config("vm", FILES, None)


def test_ssh_takes_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(ssh.config("vm", FILES, Forward(host=4022, guest=22)))
    argv = ["ssh", "-F", str(tmp_path / "config"), "-G", "vm"]
    found = process.run(argv, deadline=Deadline.after(20)).stdout.splitlines()
    assert {"hostname 127.0.0.1", "port 4022", "identityfile /run/user/1/100%%/vm/ssh/key"} <= {*found}


def test_the_keys_are_made_once_and_private(tmp_path: Path) -> None:
    files = Files(tmp_path / "ssh")
    ssh._make_keys(files, "vm", Deadline.after(20))
    key = files.key.read_bytes()
    ssh._make_keys(files, "vm", Deadline.after(20))
    assert files.key.read_bytes() == key
    assert files.directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (files.key, files.host_key))
    assert files.known_hosts.read_text().startswith("vm ssh-ed25519 ")
    assert ssh._public(files.key) != ssh._public(files.host_key)


def test_the_port_of_the_guest_s_sshd() -> None:
    usernet = (
        "Hub -1 (user.0):\n"
        "  UDP[HOST_FORWARD]   3       127.0.0.1 45111       10.0.2.15    22     0     0\n"
        "  TCP[HOST_FORWARD]   8       127.0.0.1 42221       10.0.2.15    22     0     0\n"
    )
    assert ssh._forwarded(usernet, 22) == Forward(host=42221, guest=22)
    assert ssh._forwarded(usernet, 2222) is None
    found = ssh._NETDEV.search(usernet)
    assert found is not None
    assert found[1] == "user.0"
    assert ssh._NETDEV.search("") is None


def test_a_command_has_no_place_beside_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["ssh", "vm", "--config", "--", "id"]) == 2
    assert "--config and --stdio run no command" in capsys.readouterr().err
