"""Root file systems under the builtin kernel: directories, images, this machine's own, Debian."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmdebug
from tests.fixtures.accel import ACCEL, SECONDS
from tests.unit import test_containers as containers
from vmdebug import process, sockets, ssh, vm
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError, VmError
from vmdebug.process import Completed
from vmdebug.roots import virtiofsd
from vmdebug.session import DebugSession
from vmdebug.sources import cpio
from vmdebug.vm.clones import clone as cloning

INIT = """\
#!/bin/sh
# As Debian's init scripts for sysvinit do.
mount -o remount,noexec /run
echo started >/run/by-init
exec sleep 1000000
"""


def start(**options: object) -> DebugSession:
    return vmdebug.start("builtin", accel=ACCEL, timeout=SECONDS, **options)  # type: ignore[arg-type]


@pytest.fixture
def chroot(tmp_path: Path) -> Path:
    """A root directory with busybox, and without an init."""
    top = tmp_path / "chroot"
    for name in ("app", "bin", "etc", "root", "tmp"):
        (top / name).mkdir(parents=True)
    shutil.copy(process.find("busybox", package="busybox-static"), top / "bin/busybox")
    for name in ("sh", "cat", "ls", "sleep", "hostname", "id", "readlink", "ps", "mount"):
        (top / "bin" / name).symlink_to("busybox")
    (top / "etc/name").write_text("the chroot\n")
    return top


def test_a_directory_is_the_guest_s_root_and_stays_as_it_is(chroot: Path) -> None:
    with start(root=chroot) as session:
        line = "cat /etc/name; ls /; hostname; echo new >/etc/new; cat /etc/new"
        found = session.exec(line, timeout=SECONDS)
        assert found.stdout.splitlines()[0] == "the chroot"
        assert {"bin", "dev", "etc", "proc", "run", "sys"} <= {*found.stdout.split()}
        assert found.stdout.endswith("vmdebug\nnew\n")
        assert session.vm.shell.found is not None
        assert session.vm.shell.found.kind == "agent"
        session.put(b"data", "/root/file")
        assert session.read_file("/root/file") == b"data"
        with pytest.raises(VmError):
            session.snapshot("one")
        session.console.wait_ready(timeout=SECONDS)
        session.gdb.breakpoint("do_sys_openat2")
    assert sorted(path.name for path in (chroot / "etc").iterdir()) == ["name"]
    assert not (chroot / "root/file").exists()


def test_as_an_image_it_is_saved_and_cloned(chroot: Path) -> None:
    with start(root=chroot, root_image="always") as session:
        session.exec("echo before >/etc/state", check=True, timeout=SECONDS)
        session.snapshot("one")
        session.exec("echo after >/etc/state", check=True)
        session.restore("one")
        assert session.exec("cat /etc/name /etc/state", timeout=SECONDS).stdout == "the chroot\nbefore\n"
        clones = cloning.clone(session.vm, 2, timeout=SECONDS)
        try:
            for each in clones:
                assert each.exec("cat /etc/name /etc/state", timeout=SECONDS).stdout == "the chroot\nbefore\n"
        finally:
            for each in clones:
                each.stop(force=True)


@pytest.mark.parametrize("init", [None, "/etc/start"])
def test_its_init_runs_beside_the_agent(chroot: Path, init: str | None) -> None:
    path = chroot / (init.lstrip("/") if init else "sbin/init")
    path.parent.mkdir(exist_ok=True)
    path.write_text(INIT)
    path.chmod(0o755)
    with start(root=chroot, init=init) as session:
        wait = "until [ -e /run/by-init ]; do sleep 0.1; done; cat /proc/1/cmdline /run/by-init"
        assert session.exec(wait, timeout=SECONDS).stdout == "sleep\0001000000\0started\n"
        session.exec("/run/vmdebug/busybox true", check=True)
        # The console has a shell as well.
        session.console.wait_ready(timeout=SECONDS)


def test_a_partition_of_a_disk_image(chroot: Path, tmp_path: Path) -> None:
    part, raw, disk = tmp_path / "part", tmp_path / "raw", tmp_path / "disk.qcow2"
    deadline = Deadline.after(SECONDS)
    process.run([process.find("mkfs.erofs", package="erofs-utils"), part, chroot], deadline=deadline)
    size = -(-part.stat().st_size // 512)
    with raw.open("wb") as stream:
        stream.seek(2 << 20)
        stream.write(part.read_bytes())
        stream.truncate((4 << 20) + size * 512)
    table = f"label: gpt\nstart=2048, size=2048, type=L\nstart=4096, size={size}, type=L\n"
    sfdisk = shutil.which("sfdisk") or "/usr/sbin/sfdisk"
    process.run([sfdisk, "-q", raw], stdin=table.encode(), deadline=deadline)
    process.run(["qemu-img", "convert", "-O", "qcow2", raw, disk], deadline=deadline)
    with start(root=disk) as session:
        assert session.exec("cat /etc/name", timeout=SECONDS).stdout == "the chroot\n"
        assert session.exec("cat /proc/partitions").stdout.split().count("vda2") == 1


def test_what_the_kernel_lacks_is_named_before_anything_starts(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as stream:
        stream.truncate(4 << 20)
    process.run([shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4", "-q", disk], deadline=Deadline.after(60))
    with pytest.raises(UsageError, match="not built in: CONFIG_EXT4_FS=n") as caught:
        start(root=disk)
    assert "fragment ext4" in caught.value.detail


def test_this_machine_s_own_programs_run_and_its_files_stay(tmp_path: Path) -> None:
    with start(root="host", memory="1G") as session:
        assert session.exec(["python3", "-c", "print(1)"], timeout=SECONDS).stdout == "1\n"
        assert "gcc" in session.exec("gcc --version", timeout=SECONDS).stdout
        assert session.exec(f"echo x >{tmp_path}/file && cat {tmp_path}/file").stdout == "x\n"
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("transport", ["virtiofs", "9p"])
def test_directories_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    if transport == "9p":
        monkeypatch.setattr(virtiofsd, "find", lambda *_, **__: None)
    elif virtiofsd.find(tmp_path, read_only=False) is None:
        transport = "9p"  # for another user than root, Debian 12 has no virtiofsd
    for name in ("ro", "rw", "overlay"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}\n")
    given = [f"{tmp_path}/{name}:/mnt/{name}:{name}" for name in ("ro", "rw", "overlay")]
    with start(share=given) as session:
        assert session.exec("cat /mnt/*/file", timeout=SECONDS).stdout == "overlay\nro\nrw\n"
        assert f" /mnt/rw {transport} rw" in session.exec("cat /proc/mounts").stdout
        session.exec("echo new >/mnt/rw/new; echo new >/mnt/overlay/new", check=True)
        write = "mount -o remount,rw /mnt/ro; echo new >/mnt/ro/new"
        assert session.exec(write).status != 0
        with pytest.raises(VmError, match="cannot take the snapshot"):
            session.snapshot("one")
        socket = str(session.vm.rundir.file_server(0))
        servers = [each for each in sockets.unix_sockets() if each.path == socket]
        assert bool(servers) == (transport == "virtiofs")
    assert (tmp_path / "rw/new").read_text() == "new\n"
    assert not (tmp_path / "ro/new").exists()
    assert not (tmp_path / "overlay/new").exists()
    assert not [each for each in sockets.unix_sockets() if each.path.startswith(str(session.vm.rundir.path))]


def test_a_container_image(chroot: Path, tmp_path: Path) -> None:
    (chroot / "etc/removed").touch()
    top, layers = tmp_path / "image", []
    for change in (lambda: None, lambda: (chroot / "etc/removed").rename(chroot / "etc/.wh.removed")):
        change()
        deadline = Deadline.after(SECONDS)
        process.run(["tar", "-cf", tmp_path / "layer", "--owner=7", "-C", chroot, "."], deadline=deadline)
        layers.append((tmp_path / "layer").read_bytes())
    containers.layout(top, containers.image(top, *layers, plain=tuple(layers)))
    with start(root=top) as session:
        line = 'cat /etc/name; ls /etc; pwd; echo "$A"; ls -ln /etc/name'
        out = session.exec(line, timeout=SECONDS).stdout
        assert out.startswith("the chroot\nname\n/app\nb\n")
        assert out.split()[-7] == "7"
        session.snapshot("one")


def test_an_initramfs_of_ones_own(tmp_path: Path) -> None:
    busybox = process.find("busybox", package="busybox-static").read_bytes()
    init = b"#!/bin/sh\n/bin/busybox mount -t devtmpfs d /dev\necho my own init\nexec setsid cttyhack sh\n"
    applets = [cpio.link(f"bin/{name}", "busybox") for name in ("sh", "setsid", "cttyhack", "stty", "cat")]
    entries = [
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.file("init", init, 0o755),
        cpio.directory("dev"),
        cpio.node("dev/console", 5, 1),
        *applets,
    ]
    (tmp_path / "initrd").write_bytes(cpio.archive(entries))
    with start(initrd=tmp_path / "initrd", append="root=/dev/vda1") as session:
        session.console.expect("my own init", timeout=SECONDS)
        assert session.vm.state.spec.notes[0].startswith(f"the initramfs is {tmp_path}/initrd")


class TestDebian:
    """As one types it; mmdebstrap makes the image once, in minutes, and the cache keeps it."""

    @pytest.fixture
    def guest(self) -> Iterator[str]:
        root = ("--root", "debian:bookworm", "--memory", "1G", "--net", "user")
        self.run("start", "builtin", "--accel", ACCEL, *root)
        yield "builtin"
        self.run("stop", "--all", "--force")
        assert not vm.names()

    def run(self, *words: str, status: int = 0) -> Completed:
        argv = [sys.executable, "-m", "vmdebug.cli", *words]
        done = process.run(argv, env=dict(os.environ), deadline=Deadline.after(2000), check=False)
        assert done.status == status, f"{done.stdout}\n{done.stderr}"
        return done

    def ssh(self, config: Path, command: str, stdin: bytes = b"") -> bytes:
        """Run a command with ssh, and return its output."""
        out = config.with_name("out")
        line = f"ssh -F {config} builtin {command} >{out}"
        process.run(["sh", "-c", line], stdin=stdin, deadline=Deadline.after(SECONDS))
        return out.read_bytes()

    def test_it_is_used_debugged_saved_and_cloned(self, guest: str, tmp_path: Path) -> None:
        # systemd empties /tmp while it boots; the copy comes after that.
        (tmp_path / "early").write_text("early\n")
        self.run("cp", str(tmp_path / "early"), f"{guest}:/tmp")
        # `exec` and `ssh` answer before systemd does, whose own sshd starts all the same.
        two_words = ("ssh", guest, "--timeout", "300", "--", "sh", "-c", "echo 'a  b'; exit 3")
        assert self.run(*two_words, status=3).stdout == "a  b\n"
        up = "until [ -S /run/systemd/private ]; do sleep 0.2; done"
        line = f"{up}; apt-get --version && systemctl is-system-running --wait || true; bash --version"
        out = self.run("exec", "--timeout", "600", "--", line).stdout
        assert out.startswith("apt 2.")
        assert "\nrunning\n" in out
        assert "GNU bash" in out
        assert self.run("exec", "--", "cat /tmp/early").stdout == "early\n"
        assert self.run("exec", "--", "systemctl is-active ssh; systemctl stop ssh").stdout == "active\n"
        assert self.run(*two_words, status=3).stdout == "a  b\n"
        config = tmp_path / "config"
        config.write_text(self.run("ssh", guest, "--config").stdout)
        assert "    Port " in config.read_text()
        data = bytes(range(256)) * 400
        assert self.ssh(config, "cat", data) == data
        # The way of guests that are not on the user network.
        config.write_text(ssh.config(guest, ssh.files(vm.find(guest)), None))
        assert self.ssh(config, "cat", data) == data
        attach = ("attach", "--batch", "-ex", "break do_sys_openat2", "-ex", "continue", "-ex", "bt 1")
        assert "do_sys_openat2 (" in self.run(*attach).stdout
        self.run("exec", "--", "echo saved >/etc/state")
        self.run("snapshot", "save", guest, "one")
        self.run("exec", "--", "rm /etc/state")
        self.run("snapshot", "load", guest, "one")
        assert self.run("exec", guest, "--", "cat /etc/state").stdout == "saved\n"
        self.run("clone", "--count", "3", guest)
        for number in (1, 2, 3):
            done = self.run("exec", f"{guest}-{number}", "--", "cat /etc/state; cat /etc/debian_version")
            assert done.stdout.startswith("saved\n12.")
        assert len(json.loads(self.run("status", "--json").stdout)) == 4
