"""`cp` with a real guest, by each way into it."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import channelguest
from tests.fixtures.accel import SECONDS
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, UsageError, VmError
from vmdebug.guest import LaunchSpec
from vmdebug.process import Completed
from vmdebug.session import DebugSession
from vmdebug.vm import Vm

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(builtin: LaunchSpec) -> Iterator[Vm]:
    with channelguest.of_module(builtin, "cp") as vm:
        yield vm


@pytest.fixture
def guest(shared: Vm) -> Iterator[Vm]:
    """The guest with a small disk; nothing is left of copies that failed."""
    mount = "mkdir -p /run/small && mount -t tmpfs -o size=2m none /run/small"
    shared.exec(mount, check=True, timeout=SECONDS)
    yield shared
    assert shared.exec("find / -xdev /run /tmp -name '.vmdebug-cp*'").stdout == ""
    shared.exec("umount /run/small", check=True)


def environment(vm: Vm) -> dict[str, str]:
    return {**os.environ, "XDG_RUNTIME_DIR": str(vm.rundir.path.parent.parent)}


def cp(vm: Vm, *words: str | Path, status: int = 0) -> Completed:
    argv = [sys.executable, "-m", "vmdebug.cli", "cp", *words]
    done = process.run(argv, env=environment(vm), deadline=Deadline.after(SECONDS), check=False)
    assert done.status == status, done.stderr
    return done


def tree(top: Path) -> Path:
    (top / "a b").mkdir(parents=True)
    (top / "a b/data").write_bytes(os.urandom(100_000))
    (top / "a b/run").write_text("#!/bin/sh\necho it runs\n")
    (top / "a b/run").chmod(0o755)
    (top / "link").symlink_to("a b/run")
    with (top / "sparse").open("wb") as stream:
        stream.truncate(64 * MIB)
    for path in (top / "a b/data", top / "a b/run", top / "a b", top):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return top


def same(one: Path, other: Path) -> bool:
    names = [sorted(str(path.relative_to(top)) for path in top.rglob("*")) for top in (one, other)]
    return names[0] == names[1] and all(
        (one / name).lstat().st_mode == (other / name).lstat().st_mode
        and (one / name).is_dir() == (other / name).is_dir()
        and ((one / name).is_dir() or (one / name).read_bytes() == (other / name).read_bytes())
        for name in names[0]
    )


def test_a_stream_goes_in_and_comes_out_exactly(guest: Vm, tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    (tmp_path / "data").write_bytes(data)
    line = f"exec {sys.executable} -m vmdebug.cli cp"
    there = f"{line} - :/tmp/x <{tmp_path}/data"
    back = f"{line} :/tmp/x - | sha256sum"
    for each in (there, back):
        done = process.run(["sh", "-c", each], env=environment(guest), deadline=Deadline.after(SECONDS))
    assert done.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_a_directory_goes_in_is_used_and_comes_out(guest: Vm, tmp_path: Path) -> None:
    source = tree(tmp_path / "tree")
    cp(guest, source, "cp:/tmp")
    assert guest.exec("/tmp/tree/link").stdout == "it runs\n"
    assert guest.exec("stat -c %Y '/tmp/tree/a b/data' /tmp/tree").stdout == "1000000000\n" * 2
    assert int(guest.exec("du -k /tmp/tree/sparse").stdout.split()[0]) < 1000
    cp(guest, "cp:/tmp/tree", tmp_path / "back")
    assert same(source, tmp_path / "back")
    assert (tmp_path / "back/sparse").stat().st_blocks == 0
    guest.exec("rm -r /tmp/tree", check=True)


def test_a_full_disk_is_said_and_nothing_is_left(guest: Vm, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(3 * MIB))
    (tmp_path / "small").write_bytes(b"older")
    cp(guest, tmp_path / "small", "cp:/run/small/large")
    message = "the guest's file system is full: /run/small"
    assert message in cp(guest, tmp_path / "large", "cp:/run/small", status=1).stderr
    assert message in cp(guest, tmp_path, "cp:/run/small", status=1).stderr
    assert guest.exec("cat /run/small/large; ls -A /run/small").stdout == "olderlarge\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_nothing_is_left(guest: Vm, number: signal.Signals) -> None:
    words = [sys.executable, "-m", "vmdebug.cli", "cp", "-", "cp:/run/small/file"]
    with process.spawn(words, env=environment(guest), stdin=process.PIPE) as child:
        wait = "until ls -d /run/small/.vmdebug-cp*; do sleep 0.1; done"
        assert guest.exec(wait, timeout=SECONDS).status == 0
        child.send_signal(number)
        child.wait(SECONDS)
    gone = 'until [ -z "$(ls -A /run/small)" ]; do sleep 0.1; done'
    assert guest.exec(gone, timeout=SECONDS).status == 0


def test_from_python(guest: Vm, tmp_path: Path) -> None:
    with DebugSession(guest, owned=False) as session:
        session.put(b"kernel.sysrq", "/tmp/name")
        assert session.read_file("/tmp/name") == b"kernel.sysrq"
        with pytest.raises(VmError, match="there is no directory /nowhere"):
            session.put(b"x", "/nowhere/x")
        with pytest.raises(UsageError, match="missing"):
            session.get("/tmp/name", f"{tmp_path}/missing/")
        guest.put(b"0\n", "/proc/sys/kernel/sysrq")
        assert guest.read_file("/proc/sys/kernel/sysrq") == b"0\n"
        guest.pause()
        with pytest.raises(StateError, match="needs a running guest"):
            session.read_file("/tmp/name", timeout=30)
        guest.resume()


@pytest.mark.parametrize("lacking", [{"virtio_serial": False}, {"virtio_serial": False, "uarts": ()}])
def test_the_slower_ways_are_exact_too(
    builtin: LaunchSpec, lacking: dict[str, object], tmp_path: Path
) -> None:
    source = tree(tmp_path / "tree")
    (source / "sparse").unlink()
    with channelguest.started(builtin, "slow", **lacking) as vm:
        vm.put(source, "/tmp", timeout=SECONDS)
        assert vm.exec("/tmp/tree/link").stdout == "it runs\n"
        vm.get("/tmp/tree", tmp_path / "back", timeout=SECONDS)
        assert same(source, tmp_path / "back")
        listed = vm.exec("ls /tmp | grep -v ^vmdebug-").stdout  # on the serial line, the listing's own files
        assert listed == "tree\n"
