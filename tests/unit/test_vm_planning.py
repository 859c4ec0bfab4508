from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from vmdebug import network
from vmdebug.errors import HostError, UsageError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine, RunnerMachine
from vmdebug.vm import planning
from vmdebug.vm.planning import Plan

# A fake QEMU that only lists its features.
QEMU = """\
#!/bin/sh
case $1 in
-help) echo 'QEMU emulator version 7.2.22' ;;
*) echo 'name "vmcoreinfo"' ;;
esac
"""


@pytest.fixture(autouse=True)
def qemu(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only QEMU on PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return script(directory / "qemu-system-x86_64", QEMU)


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def plan(machine: OwnMachine | RunnerMachine, **changes: object) -> Plan:
    values: dict[str, object] = {
        "name": "vm",
        "guest": "a test",
        "machine": machine,
        "kernel": Kernel(arch="x86_64", image=Path("/bzImage"), origin="a test"),
        "accel": "tcg",
    }
    spec = LaunchSpec(**{**values, **changes})  # type: ignore[arg-type]
    return planning.plan(spec, timeout=20)


def test_a_plan_makes_nothing(qemu: Path, runtime: Path) -> None:
    found = plan(OwnMachine())
    assert found.argv[0] == str(qemu)
    assert (found.accel, found.reason, found.env) == ("tcg", "asked for", {})
    assert "vmcoreinfo" in found.argv
    assert str(runtime / "vmdebug" / "vm" / "qemu.pid") in found.argv
    assert not (runtime / "vmdebug").exists()


def test_its_line_can_be_pasted(tmp_path: Path) -> None:
    runner = script(tmp_path / "run-vm-vm", '#!/bin/sh\nexec qemu-system-x86_64 "$@"\n')
    found = plan(RunnerMachine(script=runner, system_name="vm"), parameters=("a=b c", "d"))
    words = shlex.split(found.line().replace("\\\n", " "))
    assert words == [*(f"{key}={value}" for key, value in found.env.items()), *found.argv]


def test_the_format_of_a_disk_is_looked_at(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"QFI\xfb\0\0\0\3")
    assert "driver=qcow2,node-name=disk0,file=file0" in plan(OwnMachine(disk=disk)).argv
    disk.write_bytes(bytes(512))
    assert "driver=raw,node-name=disk0,file=file0" in plan(OwnMachine(disk=disk)).argv


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the disk") as caught:
        plan(OwnMachine(disk=tmp_path / "nothing"))
    assert "qemu-img create" in caught.value.hint


def test_a_runners_own_qemu_is_asked(tmp_path: Path) -> None:
    other = script(tmp_path / "qemu-system-x86_64", QEMU.replace("vmcoreinfo", "pvpanic"))
    runner = script(tmp_path / "run-vm-vm", f'#!/bin/sh\nexec {other} "$@"\n')
    words = plan(RunnerMachine(script=runner, system_name="vm")).argv
    assert words[0] == str(runner)
    assert "pvpanic" in words
    assert "vmcoreinfo" not in words


def test_of_a_runners_qemu_that_is_not_named_the_least_is_expected(tmp_path: Path) -> None:
    runner = script(tmp_path / "run-vm-vm", '#!/bin/sh\nexec qemu-system-x86_64 "$@"\n')
    assert "vmcoreinfo" not in plan(RunnerMachine(script=runner, system_name="vm")).argv


def test_a_runner_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the runner script"):
        plan(RunnerMachine(script=tmp_path / "nothing", system_name="vm"))


def test_no_qemu_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError) as caught:
        plan(OwnMachine())
    assert "apt install qemu-system-x86" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a/b"}, "cannot be a VM's name"),
        ({"qemu_args": ("-s",)}, "cannot be used here"),
        ({"kernel": Kernel(image=Path("/x"), origin="t", arch="vax")}, "no support for vax"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan(OwnMachine(), **changes)


NETWORKS = """\
#!/bin/sh
case $1 in
-help) echo '-netdev bridge,id=str[,br=bridge][,helper=helper]'
	echo "                using the program 'helper (default=/nowhere/qemu-bridge-helper)" ;;
*) echo 'name "virtio-net-pci", bus PCI' ;;
esac
"""


@pytest.mark.parametrize(
    ("net", "says"),
    [
        ("user", r'net="user": .*qemu-system-x86_64 was built without its network backend user'),
        ("segment=lab", 'net="segment=lab": .* without its network backend stream'),
        ("bridge=br0", 'net="bridge=br0" needs qemu-bridge-helper, and there is no /nowhere/'),
    ],
)
def test_a_qemu_that_lacks_a_network(qemu: Path, net: str, says: str) -> None:
    script(qemu, NETWORKS)
    with pytest.raises(HostError, match=says):
        plan(OwnMachine(), nics=network.parse([net], []))


def test_a_bridge_that_does_not_exist(qemu: Path, tmp_path: Path) -> None:
    helper = script(tmp_path / "qemu-bridge-helper", "#!/bin/sh\n")
    script(qemu, NETWORKS.replace("/nowhere/qemu-bridge-helper", str(helper)))
    with pytest.raises(HostError, match='net="bridge=br-none": this machine has no bridge br-none') as caught:
        plan(OwnMachine(), nics=network.parse(["bridge=br-none"], []))
    assert "ip link add br-none type bridge" in caught.value.hint


def test_a_qemu_without_a_network_card() -> None:
    with pytest.raises(HostError, match="has no virtio-net-pci"):
        plan(OwnMachine(), nics=network.parse(["user"], []))


def test_a_plan_joins_no_segment(qemu: Path, runtime: Path) -> None:
    script(qemu, NETWORKS.replace("-netdev bridge", "-netdev stream"))
    words = plan(OwnMachine(), nics=network.parse(["segment=lab"], [])).argv
    assert words[words.index("-netdev") + 1] == (
        f"stream,id=net0,server=off,addr.type=unix,addr.path={runtime}/vmdebug/.segments/lab/hub.sock"
    )
    assert "vmdebug.net=52:54:00:b1:c4:01,10.177.196.1/24,," in words[words.index("-append") + 1]
    assert not (runtime / "vmdebug").exists()


def test_a_directory_too_deep_for_sockets(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / ("d" * 100)))
    with pytest.raises(HostError, match="must not exceed 107"):
        plan(OwnMachine())
