"""The kernel's own GDB scripts: prepared for each kind of kernel, and used on a running guest."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import pytest

from tests.fixtures.nixfixture import FixtureFlake
from vmdebug import process, sources
from vmdebug.deadline import Deadline
from vmdebug.errors import MismatchError
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.process import Completed
from vmdebug.progress import Step, silent
from vmdebug.sources.kernel_scripts import prepare
from vmdebug.sources.kernel_scripts.constants import Source
from vmdebug.sources.kernel_scripts.prepare import Scripts
from vmdebug.sources.kernels import tree
from vmdebug.sources.nixos import fetch_source
from vmdebug.sources.nixos import flake as flake_source

SECONDS = 900.0

SHOWN = ("-ex", "lx-version", "-ex", "lx-ps", "-ex", "lx-dmesg")


@pytest.fixture
def empty_cache(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, after the builtin kernel has been found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def options(flake: FixtureFlake, attribute: str) -> GuestOptions:
    return GuestOptions(source=f".#{attribute}", nix_args=flake.nix_args, accel="tcg")


def resolved(wanted: GuestOptions) -> LaunchSpec:
    return sources.resolve(wanted, report=silent, deadline=Deadline.after(SECONDS))


def made(wanted: GuestOptions, steps: list[Step] | None = None) -> Scripts:
    report = silent if steps is None else steps.append
    return sources.gdb_scripts(wanted, report=report, deadline=Deadline.after(SECONDS))


def vmdebug(*words: str | Path) -> Completed:
    argv = [sys.executable, "-m", "vmdebug.cli", *words]
    return process.run(argv, deadline=Deadline.after(SECONDS))


def in_use(kernel: Kernel, *guest: str) -> None:
    """The scripts print facts of a running guest."""
    vmdebug("start", *guest, "--accel", "tcg")
    try:
        vmdebug("exec", "--", "true")
        done = vmdebug("attach", "-nx", "--batch", *SHOWN)
    finally:
        vmdebug("stop", "--all", "--force")
    assert f"Linux version {kernel.release} " in done.stdout
    assert " swapper/0" in done.stdout
    assert " kthreadd" in done.stdout
    assert "] Linux version " in done.stdout
    assert "Run /init as init process" in done.stdout
    assert "kernel GDB scripts" not in done.stderr


def in_flake(flake: FixtureFlake, attribute: str) -> tuple[str, ...]:
    return (f".#{attribute}", "--override-input", *flake.nix_args[1:])


def test_the_builtin_kernel_has_them_as_they_stand(kernel: Kernel) -> None:
    scripts = made(GuestOptions(source="builtin"))
    assert scripts.directory == kernel.gdb_scripts
    in_use(kernel, "builtin")


@pytest.mark.usefixtures("empty_cache")
def test_a_dev_output_against_which_modules_are_built(flake: FixtureFlake, kernel: Kernel) -> None:
    wanted = options(flake, "base-nixos")
    before = resolved(wanted)
    assert before.kernel.gdb_scripts is None
    assert before.notes[-1].startswith("no kernel scripts in GDB: ")
    assert before.notes[-1].endswith("run `vmdebug kernel scripts '.#base-nixos'`")
    scripts = made(wanted)
    assert "constants.py by the makefiles of" in scripts.how
    assert scripts.build_id == kernel.build_id
    assert same_constants(scripts, kernel)
    assert resolved(wanted).kernel.gdb_scripts == scripts.directory
    in_use(kernel, *in_flake(flake, "base-nixos"))


@pytest.mark.usefixtures("empty_cache")
def test_the_source_by_nix_where_dev_has_no_way_to_make_them(flake: FixtureFlake, kernel: Kernel) -> None:
    wanted = options(flake, "layout-b")
    assert resolved(wanted).kernel.gdb_scripts is None
    steps: list[Step] = []
    scripts = made(wanted, steps)
    assert scripts.how.endswith("constants.py by `make scripts_gdb`")
    assert same_constants(scripts, kernel)
    what = list(dict.fromkeys(step.what for step in steps))
    assert what[-2:] == ["getting the kernel's source", prepare.WHAT]
    in_use(kernel, *in_flake(flake, "layout-b"))


@pytest.mark.usefixtures("empty_cache")
def test_what_only_has_to_be_put_together_is_so_at_start(flake: FixtureFlake, kernel: Kernel) -> None:
    found = resolved(options(flake, "layout-c")).kernel.gdb_scripts
    assert found is not None
    assert (found / "vmlinux-gdb.py").is_file()
    assert found.name == kernel.build_id
    in_use(kernel, *in_flake(flake, "layout-c"))


def test_the_source_by_the_attributes_of_the_kernel_that_boots(flake: FixtureFlake, kernel: Kernel) -> None:
    """nix does not know the derivation, here because the image is not its output."""
    wanted = options(flake, "no-variant")
    target = flake_source.parse(sources.parse(wanted.source), wanted.nix_args)
    image = resolved(wanted).kernel.image
    found = fetch_source._of_attributes(target, image.parent, silent, Deadline.after(SECONDS))
    assert isinstance(found, Source)
    assert found.path.resolve() == source_of(kernel)
    assert found.config == (tree_of(kernel) / ".config").read_bytes()


def test_a_tree_whose_scripts_are_not_made(kernel: Kernel, empty_cache: Path, tmp_path: Path) -> None:
    """The tree is not changed."""
    built = unmade(kernel, tmp_path / "tree")
    before = sorted(built.rglob("*"))
    wanted = GuestOptions(source=str(built))
    assert resolved(wanted).kernel.gdb_scripts is None
    scripts = made(wanted)
    assert scripts.directory.is_relative_to(empty_cache)
    assert same_constants(scripts, kernel)
    assert sorted(built.rglob("*")) == before
    steps: list[Step] = []
    assert made(wanted, steps) == scripts
    assert not steps


@pytest.mark.usefixtures("empty_cache")
def test_an_image_by_itself_with_the_tree_that_it_was_built_in(kernel: Kernel, tmp_path: Path) -> None:
    assert kernel.vmlinux is not None
    bare = msgspec.structs.replace(kernel, vmlinux=tmp_path / "vmlinux", gdb_scripts=None)
    (tmp_path / "vmlinux").symlink_to(kernel.vmlinux)
    scripts = prepare.make(bare, source=tree_of(kernel), report=silent, deadline=Deadline.after(SECONDS))
    assert same_constants(scripts, kernel)


@pytest.mark.usefixtures("empty_cache")
def test_the_source_of_another_version_is_refused(kernel: Kernel, tmp_path: Path) -> None:
    assert kernel.vmlinux is not None
    (tmp_path / "vmlinux").symlink_to(kernel.vmlinux)
    bare = msgspec.structs.replace(kernel, vmlinux=tmp_path / "vmlinux", gdb_scripts=None)
    other = tmp_path / "other"
    other.mkdir()
    (other / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 2\nSUBLEVEL = 0\nEXTRAVERSION =\n")
    with pytest.raises(MismatchError, match=rf"belong to Linux 6\.2\.0, and .* is {kernel.release}"):
        prepare.make(bare, source=other, report=silent, deadline=Deadline.after(SECONDS))


def test_a_command_that_is_broken_on_this_kernel_says_so_and_the_others_work(kernel: Kernel) -> None:
    """lx-timerlist of Linux 6.1 expects the rbtree of Linux before 5.4; that of 7.2 is outdated too."""
    vmdebug("start", "builtin", "--accel", "tcg")
    try:
        vmdebug("exec", "--", "true")
        argv = [sys.executable, "-m", "vmdebug.cli", "attach", "-nx", "--batch", "-ex", "lx-timerlist"]
        done = process.run([*argv, *SHOWN], deadline=Deadline.after(SECONDS), check=False)
    finally:
        vmdebug("stop", "--all", "--force")
    assert done.status == 1
    reason = r"There is no member named \w+\. \(linux/timerlist\.py:\d+\)"
    assert re.search(rf"^lx-timerlist is broken on this kernel: {reason}$", done.stderr, re.MULTILINE)
    assert "Python Exception" not in done.stderr
    assert f"Linux version {kernel.release} " in done.stdout


def tree_of(kernel: Kernel) -> Path:
    assert kernel.vmlinux is not None
    return kernel.vmlinux.parent


def source_of(kernel: Kernel) -> Path:
    source = tree.source(tree_of(kernel))
    assert source is not None
    return source


def same_constants(scripts: Scripts, kernel: Kernel) -> bool:
    name = "scripts/gdb/linux/constants.py"
    return (scripts.directory / name).read_text() == (tree_of(kernel) / name).read_text()


def unmade(kernel: Kernel, directory: Path) -> Path:
    """The kernel's build tree as without CONFIG_GDB_SCRIPTS, made of links."""
    directory.mkdir()
    left_out = {"scripts", "vmlinux-gdb.py"}
    for each in tree_of(kernel).iterdir():
        if (each.name not in left_out and not each.name.startswith(".")) or each.name == ".config":
            (directory / each.name).symlink_to(each)
    (directory / "scripts").mkdir()
    for each in (tree_of(kernel) / "scripts").iterdir():
        if each.name != "gdb":
            (directory / "scripts" / each.name).symlink_to(each)
    return directory
