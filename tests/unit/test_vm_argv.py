from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug import addressing, network
from vmdebug.arch import by_name
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine, Root, Share
from vmdebug.network import Nic
from vmdebug.vm import argv, disks, network_cards, qemuargs
from vmdebug.vm.features import Features
from vmdebug.vm.rundir import RunDir

X86_64 = by_name("x86_64")
ALL = Features(version="7.2", pvpanic="pvpanic-pci", vmcoreinfo=True, rng=True, actions=True)
RUNDIR = RunDir(Path("/run/vm"))
QEMU = Path("/usr/bin/qemu-system-x86_64")


def spec(**changes: object) -> LaunchSpec:
    values: dict[str, object] = {
        "name": "vm",
        "guest": "builtin",
        "machine": OwnMachine(initrd=Path("/i.cpio")),
        "kernel": Kernel(arch="x86_64", image=Path("/bzImage"), origin="a test"),
        "parameters": ("console=ttyS0", "nokaslr"),
    }
    return LaunchSpec(**{**values, **changes})  # type: ignore[arg-type]


def own(of: LaunchSpec, accel: argv.RealAccel = "tcg", features: Features = ALL) -> list[str]:
    machine = of.machine
    assert isinstance(machine, OwnMachine)
    disk_format: disks.DiskFormat | None = "qcow2" if machine.disk else None
    words = argv.own(
        of,
        machine,
        qemu=QEMU,
        arch=X86_64,
        accel=accel,
        rundir=RUNDIR,
        features=features,
        disk_format=disk_format,
    )
    return list(words)


def test_a_firmware_is_flash_that_the_guest_cannot_write() -> None:
    whole = own(spec(machine=OwnMachine(firmware=Path("/a.fd"), unified=Path("/linux.efi"))))
    assert whole[whole.index("-kernel") + 1] == "/linux.efi"
    assert "-initrd" not in whole
    words = own(spec(machine=OwnMachine(firmware=Path("/a,b.fd"))))
    at = words.index("-drive")
    assert words[at + 1] == "if=pflash,unit=0,format=raw,readonly=on,file=/a,,b.fd"


def test_the_whole_command_line() -> None:
    everything = spec(
        machine=OwnMachine(initrd=Path("/i.cpio"), disk=Path("/d.qcow2")),
        halt=True,
        memory=1024,
        cpus=2,
        qemu_args=("-device", "edu"),
    )
    assert own(everything) == [
        "/usr/bin/qemu-system-x86_64",
        *("-name", "vm,debug-threads=on"),
        "-nodefaults",
        "-no-user-config",
        *("-machine", "q35,accel=tcg"),
        *("-cpu", "max"),
        *("-m", "1024"),
        *("-smp", "2,sockets=2"),
        *("-kernel", "/bzImage"),
        *("-initrd", "/i.cpio"),
        *("-append", "console=ttyS0 nokaslr"),
        *("-blockdev", "driver=file,node-name=file0,filename=/d.qcow2"),
        *("-blockdev", "driver=qcow2,node-name=disk0,file=file0"),
        *("-device", "virtio-blk-pci,drive=disk0"),
        *("-device", "virtio-rng-pci"),
        *("-display", "none"),
        *("-monitor", "none"),
        "-chardev",
        (
            "socket,id=console0,path=/run/vm/console.sock,server=on,wait=off"
            ",logfile=/run/vm/console.log,logappend=on"
        ),
        *("-serial", "chardev:console0"),
        *("-chardev", "socket,id=qmp0,path=/run/vm/qmp.sock,server=on,wait=off"),
        *("-qmp", "chardev:qmp0"),
        *("-chardev", "socket,id=qmp1,path=/run/vm/control.sock,server=on,wait=off"),
        *("-qmp", "chardev:qmp1"),
        *("-chardev", "socket,id=gdb0,path=/run/vm/gdb.sock,server=on,wait=off"),
        *("-gdb", "chardev:gdb0"),
        *("-device", "pvpanic-pci"),
        *("-device", "vmcoreinfo"),
        "-no-reboot",
        *("-action", "panic=pause"),
        *("-pidfile", "/run/vm/qemu.pid"),
        "-S",
        *("-device", "edu"),
    ]


def test_network_cards() -> None:
    nics = (
        *network.parse(["user"], ["8080:80", ":53/udp"]),
        addressing.member(network.parse(["segment=a"], [])[0], 3),
        Nic(kind="bridge", name="br,0", mac="52:54:00:00:00:07", address="dhcp"),
        Nic(kind=None, mac="52:54:00:00:00:03"),
    )
    initial = argv.InitialState(connected={"a": 11})
    rules = "hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:127.0.0.1:0-:53"
    assert network_cards.attached(nics, initial.connected, RUNDIR) == (
        *("-netdev", f"user,id=net0,{rules}"),
        *("-device", "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:12:34:56,romfile="),
        *("-netdev", "stream,id=net1,server=off,addr.type=fd,addr.str=11"),
        *("-device", "virtio-net-pci,id=nic1,netdev=net1,mac=52:54:00:be:43:03,romfile="),
        *("-netdev", "bridge,id=net2,br=br,,0"),
        *("-device", "virtio-net-pci,id=nic2,netdev=net2,mac=52:54:00:00:00:07,romfile="),
        *("-netdev", "hubport,id=net3,hubid=3"),
        *("-device", "virtio-net-pci,id=nic3,netdev=net3,mac=52:54:00:00:00:03,romfile="),
    )
    words = own(spec(nics=nics))
    assert words[words.index("-append") + 1].startswith("vmdebug.net=52:54:00:12:34:56,10.0.2.15/24,")
    words = own(spec(nics=nics, machine=OwnMachine(own_init=False)))
    assert words[words.index("-append") + 1].endswith(
        "ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off:10.0.2.3 console=ttyS0 nokaslr"
    )


def test_what_the_user_leaves_open_has_a_default() -> None:
    words = own(spec(machine=OwnMachine(), parameters=()))
    assert words[words.index("-m") + 1] == "512"
    assert words[words.index("-smp") + 1] == "1,sockets=1"
    assert not {"-S", "-initrd", "-append", "-blockdev"} & set(words)


def test_the_modules_are_a_read_only_disk() -> None:
    assert disks.modules(Path("/m,1.erofs")) == (
        *("-blockdev", "driver=file,node-name=modulesfile0,filename=/m,,1.erofs,read-only=on"),
        *("-blockdev", "driver=raw,node-name=modules0,file=modulesfile0,read-only=on"),
        *("-device", "virtio-blk-pci,drive=modules0,serial=vmdebug-modules"),
    )
    assert disks.modules(Path("/m"))[1] in own(spec(machine=OwnMachine(modules=Path("/m"))))


def test_kvm_takes_the_hosts_cpu() -> None:
    assert argv.machine_type(X86_64, "kvm")[-1] == "q35,accel=kvm"
    assert argv.cpu(X86_64, "kvm") == ("-cpu", "host")


def test_the_gdbstub_on_tcp_listens_on_localhost_only() -> None:
    assert argv.gdbstub(RUNDIR, 1234) == (
        *("-chardev", "socket,id=gdb0,host=127.0.0.1,port=1234,server=on,wait=off"),
        *("-gdb", "chardev:gdb0"),
    )
    assert "host=127.0.0.1,port=0," in argv.gdbstub(RUNDIR, 0)[1]


def test_a_qemu_that_has_nothing_gets_nothing() -> None:
    words = own(spec(), features=Features())
    assert "-device" not in words
    assert "-action" not in words
    assert "-no-reboot" in words


def test_a_device_that_the_user_names_is_not_added_again() -> None:
    words = own(spec(qemu_args=("-device", "vmcoreinfo", "-device", "pvpanic,ioport=0x506")))
    assert words.count("vmcoreinfo") == 1
    assert "pvpanic-pci" not in words


def test_a_disk_named_like_a_device_is_no_device() -> None:
    words = own(spec(qemu_args=("-drive", "file=pvpanic-tests.img", "-global", "pvpanic-pci.events=0")))
    assert words.count("pvpanic-pci") == 1
    assert own(spec(qemu_args=("-append", "vmcoreinfo"))).count("vmcoreinfo") == 2


@pytest.mark.parametrize(
    "given",
    [
        ("--device", "vmcoreinfo"),
        ("-device", "vmcoreinfo,id=x"),
        ("-device", "id=x,driver=vmcoreinfo"),
        ("-device", '{"driver": "vmcoreinfo", "id": "x"}'),
    ],
)
def test_a_device_is_found_in_each_form(given: tuple[str, ...]) -> None:
    words = own(spec(qemu_args=given))
    assert words[-2:] == list(given)
    assert "vmcoreinfo" not in words[:-2]


def test_commas_in_paths_are_written_twice() -> None:
    words = argv.console(RunDir(Path("/run/a,b")))
    assert "path=/run/a,,b/console.sock," in words[1]
    assert "logfile=/run/a,,b/console.log," in words[1]
    assert "filename=/x,,y" in disks.disk(Path("/x,y"), "raw")[1]
    assert "file=/x,,y" in disks.throwaway(Path("/x,y"), "raw")[1]


def test_a_disk_that_stays_as_it_is_takes_writes_into_a_file_of_qemus_own() -> None:
    words = own(spec(machine=OwnMachine(disk=Path("/d.qcow2"), throwaway=True)))
    at = words.index("-drive")
    assert words[at : at + 4] == [
        *("-drive", "if=none,id=disk0,format=qcow2,snapshot=on,file=/d.qcow2"),
        *("-device", "virtio-blk-pci,drive=disk0"),
    ]
    assert "-blockdev" not in words


def test_a_disk_has_the_format_of_its_magic() -> None:
    assert disks.disk_format(b"QFI\xfb\0\0\0\3") == "qcow2"
    assert disks.disk_format(b"\xeb\x63\x90\0") == "raw"
    assert disks.disk_format(b"") == "raw"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["-s"], 'tcp="PORT"'),
        (["-gdb", "tcp::1"], 'tcp="PORT"'),
        (["--gdb", "tcp::1"], 'tcp="PORT"'),
        (["-accel", "kvm"], "accel="),
        (["-m", "1G", "-daemonize"], "in the background"),
        (["--daemonize"], "in the background"),
        (["-machine", "q35,accel=kvm"], "accel="),
        (["--M", "accel=tcg"], "accel="),
        (["-device", "help"], "qemu-system-x86_64 -device help"),
        (["--version"], "qemu-system-x86_64 --version"),
        (["-drive=file=a=b,if=none"], "write -drive file=a=b,if=none"),
    ],
)
def test_arguments_that_would_undo_ours_are_refused(words: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        argv.check_extra(qemuargs.parse(words), qemu=X86_64.qemu)
    assert hint in caught.value.hint


def test_other_arguments_are_the_users_business() -> None:
    words = ["-S", "-device", "s", "gdb", "-serial", "none", "-", "-append", "-s", "-machine", "acpi=off"]
    argv.check_extra(qemuargs.parse(words), qemu=X86_64.qemu)
    assert own(spec(qemu_args=tuple(words)))[-len(words) :] == words


def test_the_probe_boots_to_the_first_line_on_stdout() -> None:
    assert argv.probe(qemu=QEMU, arch=X86_64, accel="kvm", image=Path("/bzImage")) == (
        "/usr/bin/qemu-system-x86_64",
        "-nodefaults",
        "-no-user-config",
        *("-machine", "q35,accel=kvm"),
        *("-cpu", "host"),
        *("-m", "512"),
        *("-kernel", "/bzImage"),
        *("-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"),
        *("-display", "none"),
        *("-monitor", "none"),
        "-no-reboot",
        *("-chardev", "stdio,id=serial0,signal=off"),
        *("-serial", "chardev:serial0"),
    )


def test_a_root_directory_is_shared_read_only() -> None:
    root = Root(words="host", location=Path("/a,b"), file_system="9p")
    words = own(spec(root=root))
    assert words[(at := words.index("-fsdev")) : at + 4] == [
        "-fsdev",
        "local,id=fs0,path=/a,,b,security_model=none,multidevs=remap,readonly=on",
        "-device",
        "virtio-9p-pci,fsdev=fs0,mount_tag=vmdebug-root",
    ]


def test_virtiofsd_needs_shared_memory() -> None:
    root = Root(words="host", location=Path("/"), file_system="virtiofs")
    share = Share(directory=Path("/d"), mount_point="/mnt", mode="rw", transport="9p", tag="t")
    words = own(spec(root=root, shares=(share,)))
    assert words[(at := words.index("-object")) : at + 4] == [
        "-object",
        "memory-backend-memfd,share=on,id=pc.ram,size=512M",
        "-machine",
        "memory-backend=pc.ram",
    ]
    assert words[(at := words.index("vhost-user-fs-pci,chardev=fs0,tag=vmdebug-root")) - 3 : at] == [
        "-chardev",
        "socket,id=fs0,path=/run/vm/fs0.sock",
        "-device",
    ]
    assert "local,id=fs1,path=/d,security_model=none,multidevs=remap" in words


@pytest.mark.parametrize(("keep", "only"), [(False, ",read-only=on"), (True, "")])
def test_a_root_image_is_read_only_unless_it_is_kept(keep: bool, only: str) -> None:
    root = Root(words="r", location=Path("/r"), file_system="ext4", format="qcow2", keep=keep)
    words = own(spec(root=root))
    assert words[(at := words.index("-blockdev")) : at + 6] == [
        "-blockdev",
        f"driver=file,node-name=rootfile0,filename=/r{only}",
        "-blockdev",
        f"driver=qcow2,node-name=root0,file=rootfile0{only}",
        "-device",
        "virtio-blk-pci,drive=root0,serial=vmdebug-root",
    ]
