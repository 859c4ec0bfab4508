"""make in a tree, here with a Makefile that prints what kbuild's prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Step, silent
from vmdebug.sources import tree_build
from vmdebug.sources.configuration import requirements

MAKEFILE = """\
all:
\t@echo '  CC      fs/open.o'
\t@echo '  LD      vmlinux'
\t@echo "fs/open.c:1:1: warning: CC is $(CC)" >&2
"""
FAILS = """\
all:
\t@echo '  CC      fs/open.o'
\t@echo "fs/open.c:1308:2: error: expected ';'" >&2
\t@exit 1
"""


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / ".config").write_text("CONFIG_X86_64=y\n")
    return tmp_path


def build(tree: Path, steps: list[Step] | None = None) -> tree_build.Built:
    report = (lambda _: None) if steps is None else steps.append
    return tree_build.build(tree, jobs=1, report=report, deadline=Deadline.after(60))


def recorded(tree: Path, command: str) -> None:
    (tree / "init").mkdir()
    (tree / "init/.main.o.cmd").write_text(f"savedcmd_init/main.o := {command} -Wp,-MMD,x -nostdinc -c\n")


def test_objects_are_told_and_warnings_kept(linux: Path) -> None:
    steps: list[Step] = []
    built = build(linux, steps)
    assert [(step.done, step.note) for step in steps] == [(1, "fs/open.o")]
    assert built.objects == 1
    assert built.warnings.startswith("fs/open.c:1:1: warning")


def test_the_builtin_kernels_tree_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source and configuration identify it, and other VMs run it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "vmdebug/kernel/1234"
    kept.mkdir(parents=True)
    (kept / "Makefile").write_text(MAKEFILE)
    with pytest.raises(UsageError, match="of the builtin kernel"):
        build(kept)


@pytest.mark.parametrize("command", ["ccache gcc", "clang-17"])
def test_the_compiler_command_is_that_of_the_objects_there_are(linux: Path, command: str) -> None:
    recorded(linux, command)
    built = build(linux)
    assert built.warnings.endswith(f"CC is {command}")
    assert ("through ccache" in built.compiler) == ("ccache" in command)


def test_a_tree_built_without_ccache_is_left_so(linux: Path) -> None:
    recorded(linux, "gcc")
    assert tree_build.compiler_of(linux, {"PATH": "/usr/bin"})[0] == ()


def test_a_tree_with_nothing_in_it_yet(linux: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    ccache = tmp_path / "bin/ccache"
    ccache.touch(mode=0o755)
    assert tree_build.compiler_of(linux, {"PATH": str(ccache.parent)})[0] == ("CC=ccache gcc",)
    assert tree_build.compiler_of(linux, {"PATH": "/var/empty"})[0] == ()
    assert tree_build.compiler_of(linux, {"PATH": str(ccache.parent), "LLVM": "1"})[0] == ()


def test_the_compilers_error_is_shown(linux: Path) -> None:
    (linux / "Makefile").write_text(FAILS)
    with pytest.raises(BuildError, match="could not be built: make ended with status 2") as caught:
        build(linux)
    assert caught.value.hint == "fs/open.c:1308:2: error: expected ';'"
    assert "error: expected" in caught.value.detail


def test_make_above_us_does_not_reach_it(linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "n")
    assert build(linux).objects == 1


def test_a_tree_that_is_not_configured(linux: Path) -> None:
    (linux / ".config").unlink()
    with pytest.raises(UsageError, match=r"there is no \.config") as caught:
        build(linux)
    assert "vmdebug kernel config" in caught.value.hint


class TestWhichTree:
    def test_the_guest_or_what_takes_its_kernels_place(self, linux: Path) -> None:
        assert tree_build.tree_of(GuestOptions(source=str(linux))) == linux
        assert tree_build.tree_of(GuestOptions(source=".#base", kernel=str(linux))) == linux

    @pytest.mark.parametrize("options", [{"source": ".#base"}, {"source": "builtin"}, {"kernel": "/bzImage"}])
    def test_none(self, options: dict[str, str]) -> None:
        with pytest.raises(UsageError, match="--build"):
            tree_build.tree_of(GuestOptions(**options))  # type: ignore[arg-type]


OLDER = """\
all:
\t@[ -z "$$KCONFIG_NOSILENTUPDATE" ] || echo '*** The configuration requires explicit update.' >&2
\t@[ -z "$$KCONFIG_NOSILENTUPDATE" ]
\t@echo '  CC      fs/open.o'
listnewconfig:
\t@echo CONFIG_ADDED=y
\t@echo CONFIG_TTY=n
olddefconfig:
\t@echo CONFIG_ADDED=y >>$$KCONFIG_CONFIG
\t@echo '# CONFIG_TTY is not set' >>$$KCONFIG_CONFIG
"""
"""What make does with a .config that is older than its source; test_kernel_config.py has the real one."""


class TestNewOptions:
    def test_they_are_told_with_the_defaults_that_they_get(self, linux: Path) -> None:
        (linux / "Makefile").write_text(OLDER)
        steps: list[Step] = []
        built = build(linux, steps)
        assert built.new_options == {"CONFIG_ADDED": "y", "CONFIG_TTY": "n"}
        assert built.objects == 1
        assert "CONFIG_ADDED=y" in (linux / ".config").read_text()
        assert "CONFIG_ADDED=y, CONFIG_TTY=n" in [step.note for step in steps]

    def test_one_that_a_boot_needs_otherwise_is_refused(self, linux: Path) -> None:
        (linux / "Makefile").write_text(OLDER)
        needs = tree_build.needs_of(GuestOptions(source=str(linux)))
        with pytest.raises(UsageError, match="with the defaults of its new options") as caught:
            tree_build.build(linux, needs=needs, jobs=1, report=silent, deadline=Deadline.after(60))
        assert caught.value.message.endswith("cannot boot here: CONFIG_TTY=n")
        assert (linux / ".config").read_text() == "CONFIG_X86_64=y\n"

    def test_what_a_nixos_guest_needs_is_another_thing(self) -> None:
        assert tree_build.needs_of(GuestOptions(source=".#base")) == requirements.RUNNER
