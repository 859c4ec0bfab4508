"""What a runner script expects of its surroundings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmdebug.errors import HostError, UsageError
from vmdebug.sources.nixos import script

# As nixpkgs' qemuNICFlags has them.
NODE = (
    "exec /nix/store/x-qemu/bin/qemu-system-x86_64 \\\n"
    "  -device virtio-net-pci,netdev=vlan1,mac=52:54:00:12:01:01 \\\n"
    '  -netdev vde,id=vlan1,sock="$QEMU_VDE_SOCKET_1" \\\n'
    "  -device virtio-net-pci,netdev=vlan2,mac=52:54:00:12:0A:01 \\\n"
    '  -netdev vde,id=vlan2,sock="$QEMU_VDE_SOCKET_10" \\\n'
    '  $QEMU_OPTS "$@"\n'
)


def test_a_nodes_networks_are_hubs_where_no_driver_is() -> None:
    absent = script.vlans(NODE, inherited={})
    assert absent == ("1", "10")
    text = script.detached(NODE, absent)
    assert "-netdev hubport,id=vlan1,hubid=1 \\" in text
    assert "-netdev hubport,id=vlan2,hubid=10 \\" in text
    assert "mac=52:54:00:12:01:01" in text
    (note,) = script.notes(NODE, absent)
    assert note.startswith("vlans 1, 10: no other node can be reached")


def test_a_network_that_is_there_is_taken() -> None:
    absent = script.vlans(NODE, inherited={"QEMU_VDE_SOCKET_10": "/run/vde10.ctl"})
    assert absent == ("1",)
    assert 'sock="$QEMU_VDE_SOCKET_10"' in script.detached(NODE, absent)
    assert script.vlans("exec qemu -netdev user,id=user.0", inherited={}) == ()


def test_a_changed_script_has_its_name_and_its_system_beside_it(tmp_path: Path) -> None:
    system = tmp_path / "toplevel"
    system.mkdir()
    original = tmp_path / "bin/run-machine-vm"
    made = [script.copy(original, "#!/bin/sh\n", system, tmp_path / "runners") for _ in range(2)]
    assert made[0] == made[1]
    assert made[0].name == "run-machine-vm"
    assert (made[0].parent.parent / "system").resolve() == system
    assert made[0].stat().st_mode & 0o111
    assert script.copy(original, "#!/bin/sh\n:\n", system, tmp_path / "runners") != made[0]


def test_scripts_of_systems_that_are_gone_are_deleted(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.mkdir()
    gone.mkdir()
    copies = [
        script.copy(tmp_path / "bin/run-x-vm", "#!/bin/sh\n", system, tmp_path / "runners")
        for system in (gone, kept)
    ]
    gone.rmdir()  # as nix-collect-garbage does
    script.copy(tmp_path / "bin/run-x-vm", "#!/bin/sh\n:\n", kept, tmp_path / "runners")
    assert [each.exists() for each in copies] == [False, True]


def test_only_the_scripts_used_last_are_kept(tmp_path: Path) -> None:
    def copied(number: int) -> Path:
        made = script.copy(tmp_path / "bin/run-x-vm", f": {number}\n", tmp_path, tmp_path / "runners")
        os.utime(made.parent.parent, (number, number))
        return made

    first, second, *_ = [copied(number) for number in range(1, script.KEPT + 1)]
    os.utime(first.parent.parent)  # used again
    newest = script.copy(tmp_path / "bin/run-x-vm", "#!/bin/sh\n", tmp_path, tmp_path / "runners")
    assert len(list((tmp_path / "runners").iterdir())) == script.KEPT
    assert [each.exists() for each in (first, second, newest)] == [True, False, True]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runners").write_text("")
    with pytest.raises(HostError, match=r"cannot write to .*runners"):
        script.copy(tmp_path / "bin/run-x-vm", "#!/bin/sh\n", tmp_path, tmp_path / "runners")


def test_a_vm_that_insists_on_kvm_is_refused_where_it_would_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'echo "forceAccel is enabled but /dev/kvm does not exist." >&2'
    monkeypatch.setattr(script, "KVM", tmp_path / "kvm")
    with pytest.raises(HostError, match=r"forceAccel, and .*/kvm does not exist") as caught:
        script.check_supported(text, accel="auto")
    assert "virtualisation.qemu.forceAccel = false" in caught.value.hint
    with pytest.raises(UsageError, match=r"tcg.*: this VM has virtualisation.qemu.forceAccel"):
        script.check_supported(text, accel="tcg")
    (tmp_path / "kvm").touch()
    script.check_supported(text, accel="kvm")
    script.check_supported("exec qemu", accel="tcg")


@pytest.mark.parametrize(
    ("line", "source"),
    [
        ("-fw_cfg name=opt/io.systemd.credentials/key,file=./key.pem", "./key.pem"),
        ("-fw_cfg name=opt/io.systemd.credentials/key,file=/run/key.pem", ""),
        ("-smbios type=11,path=<(echo 'io.systemd.credential.binary:key='; base64 -w0 'key.pem')", "key.pem"),
        ("-smbios type=11,path=<(echo 'io.systemd.credential.binary:key='; base64 -w0 '/nix/store/k')", ""),
    ],
)
def test_a_credential_that_the_script_would_not_find_is_named(line: str, source: str) -> None:
    said = script.notes(line, ())
    assert len(said) == bool(source)
    assert all(f"virtualisation.credentials.key.source is {source}" in each for each in said)
