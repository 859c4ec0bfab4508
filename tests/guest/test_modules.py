"""Modules in real guests: of a build tree, of the user, as an image under a root file system."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import vmdebug
from tests.fixtures.accel import ACCEL, SECONDS
from tests.fixtures.nixfixture import FixtureFlake
from vmdebug import process
from vmdebug.cli import status_of
from vmdebug.deadline import Deadline
from vmdebug.errors import MismatchError
from vmdebug.guest import Kernel, OwnMachine
from vmdebug.sources import kbuild
from vmdebug.sources.guest_modules import bundle
from vmdebug.vm.clones import clone as cloning

GREET = """\
#include <linux/module.h>
#include <linux/moduleparam.h>

static int count = 1;
module_param(count, int, 0444);

static noinline int greet_add(int a, int b)
{
        pr_info("greet: %d\\n", a + b);
        return a + b;
}

static int warn_set(const char *text, const struct kernel_param *param)
{
        WARN(1, "greet warns\\n");
        return 0;
}

static const struct kernel_param_ops warn_ops = { .set = warn_set };
module_param_cb(warn, &warn_ops, NULL, 0200);

static int __init greet_init(void)
{
        return greet_add(count, 41) < 0;
}

static void __exit greet_exit(void)
{
}

module_init(greet_init);
module_exit(greet_exit);
MODULE_LICENSE("GPL");
"""


@pytest.fixture(scope="module")
def tree(kernel: Kernel) -> Path:
    """The build tree of the builtin kernel."""
    assert kernel.vmlinux is not None
    return kernel.vmlinux.parent


@pytest.fixture(scope="module")
def greet(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An out-of-tree module, built for the builtin kernel."""
    directory = tmp_path_factory.mktemp("greet")
    (directory / "greet.c").write_text(GREET)
    (directory / "Makefile").write_text("obj-m := greet.o\n")
    argv = kbuild.argv(tree, tree, f"M={directory}", "modules")
    process.run(argv, env=kbuild.environment(), deadline=Deadline.after(600))
    return directory / "greet.ko"


def test_a_module_of_the_user_is_stopped_in_its_init_and_decoded(
    tree: Path, greet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with vmdebug.start(
        tree, halt=True, module=greet, append="greet.count=5", accel=ACCEL, timeout=SECONDS
    ) as session:
        gdb = session.gdb
        gdb.breakpoint("greet_add", pending=True)
        where = gdb.cont(timeout=SECONDS)
        assert where is not None
        assert (where.frame.function, int(where.frame.arg("a"))) == ("greet_add", 5)
        assert where.frame.line == GREET.splitlines().index("{") + 2
        assert "greet_init" in [frame.function for frame in where.backtrace()]
        gdb.delete_all()
        gdb.cont(wait=False)
        found = session.exec("lsmod; dmesg | grep greet:; modprobe brd && ls /dev/ram0", timeout=SECONDS)
        assert re.search(r"^greet ", found.stdout, re.MULTILINE)
        assert "greet: 46" in found.stdout
        assert found.stdout.endswith("/dev/ram0\n")
        gdb.detach()
        session.exec("echo 1 >/sys/module/greet/parameters/warn", timeout=SECONDS)
        assert status_of(["log", session.vm.name, "--decode"]) == 0
        line = GREET[: GREET.index("WARN")].count("\n") + 1
        assert f"greet.c:{line})" in capsys.readouterr().out


def test_modules_as_an_image_are_under_a_root_in_its_clones_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "LARGEST", 0)
    monkeypatch.setattr(bundle, "_FORMAT", f"{bundle._FORMAT} test")
    top = tmp_path / "chroot"
    for name in ("bin", "etc", "usr/lib"):
        (top / name).mkdir(parents=True)
    # From outside, this link leads to the lib of another file system.
    (top / "lib").symlink_to("/usr/lib")
    shutil.copy(process.find("busybox", package="busybox-static"), top / "bin/busybox")
    for name in ("sh", "cat", "modprobe", "lsmod", "mount"):
        (top / "bin" / name).symlink_to("busybox")
    (top / "etc/name").write_text("the chroot\n")
    loads = "cat /etc/name; mount | grep 'modules.*erofs'; modprobe virtio-rng; lsmod"
    with vmdebug.start("builtin", root=top, root_image="always", accel=ACCEL, timeout=SECONDS) as session:
        machine = session.vm.state.spec.machine
        assert isinstance(machine, OwnMachine)
        assert machine.modules is not None
        session.exec("true", timeout=SECONDS)
        session.snapshot("one")
        (clone,) = cloning.clone(session.vm, 1, timeout=SECONDS)
        try:
            check(clone.exec(loads, timeout=SECONDS).stdout)
        finally:
            clone.stop(force=True)
        session.restore("one")
        check(session.exec(loads, timeout=SECONDS).stdout)
        session.restart()
        check(session.exec(loads, timeout=SECONDS).stdout)


def check(said: str) -> None:
    assert said.startswith("the chroot\n")
    assert "/.image type erofs" in said
    assert re.search(r"^rng_core ", said, re.MULTILINE)


def test_the_initrd_of_a_nixos_guest_gets_the_modules_of_the_kernel_that_replaces_its_own(
    flake: FixtureFlake, tree: Path, greet: Path
) -> None:
    started = vmdebug.start(
        ".#base-nixos",
        kernel=tree,
        module=greet,
        nix_args=flake.nix_args,
        accel=ACCEL,
        timeout=SECONDS,
    )
    with started as session:
        line = "insmod /lib/modules/*/vmdebug/greet.ko && lsmod; cat /sys/block/vd*/serial; cat /proc/cmdline"
        said = session.exec(line, timeout=SECONDS).stdout
        assert re.search(r"^greet ", said, re.MULTILINE)
        assert "vmdebug-modules" in said
        assert "modules_load=greet" in said


def test_a_module_for_another_kernel_is_refused_before_the_start(greet: Path, tmp_path: Path) -> None:
    other = tmp_path / "greet.ko"
    other.write_bytes(re.sub(rb"(vermagic=)\d", rb"\g<1>5", greet.read_bytes()))
    with pytest.raises(MismatchError, match="is built for another kernel"):
        vmdebug.start("builtin", module=other)
