import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vmdebug import cache, process, shipped
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError
from vmdebug.process import Completed
from vmdebug.progress import Step
from vmdebug.sources import builtin, kbuild, kernel_source
from vmdebug.sources.builtin import BuiltKernel
from vmdebug.sources.configuration import merging

# Output of `make -j2` for Linux 6.1.
MAKE = """\
make[1]: Entering directory '/c/kernel/3a0b'
  SYNC    include/config/auto.conf.cmd
  HOSTCC  scripts/sorttable
  HOSTCC  scripts/mod/modpost.o
  UPD     include/generated/compile.h
  CC      scripts/mod/devicetable-offsets.s
  DESCEND objtool
  CC      /c/kernel/3a0b/tools/objtool/check.o
  CC      init/main.o
  LDS     arch/x86/entry/vdso/vdso.lds
  AS      arch/x86/entry/entry_64.o
  CC [M]  drivers/block/brd.o
  AR      init/built-in.a
../drivers/block/brd.c: In function 'brd_init':
  LD [M]  drivers/block/brd.ko
""".splitlines()

RELEASE = "6.1.0-vmdebug"


class Make:
    """Replaces all programs of a build; make compiles one object, and may fail."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []
        self.fails_with = ""

    def __call__(
        self, argv: list[str], *, on_line: Callable[[str], None] | None = None, **_: object
    ) -> Completed:
        words = tuple(map(str, argv))
        self.ran.append(words)
        if words[0] == "gcc":
            return Completed(words, 0, "gcc (Debian 12.2.0-14) 12.2.0\nCopyright\n", "")
        out = next((Path(word[2:]) for word in words if word.startswith("O=")), None)
        if out and "bzImage" in words:
            if self.fails_with:
                return Completed(words, 2, "", self.fails_with)
            self.compile(out, on_line)
        if words[0] == "objcopy":
            Path(words[-1]).write_text("stripped")
        return Completed(words, 0, "", "")

    def compile(self, out: Path, on_line: Callable[[str], None] | None) -> None:
        made = (
            "arch/x86/boot/bzImage",
            "vmlinux",
            "init/main.o",
            "init/.main.o.cmd",
            "scripts/mod/modpost.o",
        )
        for name in made:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(name)
        (out / "include/config").mkdir(parents=True, exist_ok=True)
        (out / "include/config/kernel.release").write_text(f"{RELEASE}\n")
        assert on_line is not None
        on_line("  CC      init/main.o")

    def targets(self) -> list[str]:
        """The last argument of each call of make."""
        return [words[-1] for words in self.ran if words[0] == "make"]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    double = Make()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(process, "run", double)
    monkeypatch.setattr(process, "find", lambda program, **_: Path("/usr/bin") / program)
    monkeypatch.setattr(kbuild, "compiler_command", lambda: "gcc")
    monkeypatch.setattr(merging, "merge", lambda *_, **__: ())
    monkeypatch.setattr(kernel_source, "unpacked", lambda source, **_: source.path)
    return double


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    path = tmp_path / "linux.tar.xz"
    path.write_bytes(b"")
    os.utime(path, (0, 0))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for mark in ("Kconfig", "Makefile", "scripts/kconfig/merge_config.sh"):
        (tmp_path / "linux" / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "linux" / mark).touch()
    return tmp_path / "linux"


def build(source: Path, **options: object) -> BuiltKernel:
    return builtin.build(source, jobs=3, deadline=Deadline.after(30), **options)  # type: ignore[arg-type]


def test_the_commands(make: Make, tarball: Path) -> None:
    out = build(tarball).directory
    common = ("make", "-C", str(tarball), f"O={out}", "-j3", "CC=gcc")
    assert make.ran == [
        ("gcc", "--version"),
        (*common, "bzImage", "modules", "scripts_gdb"),
        (*common, "modules_install", f"INSTALL_MOD_PATH={out}/install"),
        (
            *("objcopy", "--remove-section=.rela.*", "--remove-section=.rela__*"),
            *(f"{out}/vmlinux", f"{out}/vmlinux.stripped"),
        ),
    ]


def test_what_is_built(make: Make, tarball: Path) -> None:
    kernel = build(tarball)
    out = kernel.directory
    assert kernel == BuiltKernel(
        directory=cache.directory("kernel") / out.name,
        image=out / "arch/x86/boot/bzImage",
        vmlinux=out / "vmlinux",
        modules=out / f"install/lib/modules/{RELEASE}",
        config=out / ".config",
        release=RELEASE,
        source=tarball,
        origin=tarball,
        fragments=builtin.default_fragments(),
        objects=1,
        cpu_seconds=kernel.cpu_seconds,
    )
    assert builtin.built() == builtin.built(tarball) == kernel


def test_objects_are_not_kept(make: Make, tarball: Path) -> None:
    out = build(tarball).directory
    assert not list((out / "init").iterdir())
    assert (out / "scripts/mod/modpost.o").exists()
    assert (out / "vmlinux").read_text() == "stripped"


def test_a_tarball_is_built_once(make: Make, tarball: Path) -> None:
    once = build(tarball)
    make.ran.clear()
    assert build(tarball) == once
    assert make.ran == [("gcc", "--version")]


def test_a_directory_is_looked_through_by_make_each_time(make: Make, tree: Path) -> None:
    out = build(tree).directory
    assert (out / "init/main.o").exists()
    make.ran.clear()
    assert build(tree).directory == out
    assert len(make.targets()) == 2


def test_an_interrupted_build_goes_on_in_its_directory(make: Make, tarball: Path) -> None:
    make.fails_with = "make: *** Interrupt"
    with pytest.raises(BuildError, match="the kernel could not be built: make ended with status 2") as caught:
        build(tarball)
    assert builtin.built() is None
    make.fails_with = ""
    out = build(tarball).directory
    assert str(out) in caught.value.hint


def test_a_directory_that_fails_to_build_has_no_kernel_any_more(make: Make, tree: Path) -> None:
    build(tree)
    make.fails_with = "init/main.c:1: error: expected ';'"
    with pytest.raises(BuildError) as caught:
        build(tree)
    assert "expected ';'" in caught.value.detail
    assert builtin.built() is None


def test_no_space_left(make: Make, tarball: Path) -> None:
    make.fails_with = "ld: final link failed: No space left on device"
    with pytest.raises(HostError, match="not enough space") as caught:
        build(tarball)
    assert "it needs 1.2 GB" in caught.value.hint


@pytest.mark.parametrize(("option", "builds"), [("CONFIG_PVPANIC_PCI", True), ("CONFIG_SMP", False)])
def test_what_a_fragment_only_wishes_for_is_no_failure(
    make: Make, tarball: Path, monkeypatch: pytest.MonkeyPatch, option: str, builds: bool
) -> None:
    dropped = merging.Unmet(option, "y", "n", known=True)
    monkeypatch.setattr(merging, "merge", lambda *_, **__: (dropped,))
    with contextlib.nullcontext() if builds else pytest.raises(BuildError, match="1 options of the"):
        build(tarball)


def test_a_missing_header_names_its_package(make: Make, tarball: Path) -> None:
    make.fails_with = "elf.h:10:10: fatal error: gelf.h: No such file or directory"
    with pytest.raises(HostError, match=r"gelf\.h") as caught:
        build(tarball)
    assert "apt install libelf-dev" in caught.value.hint


def test_the_last_one_built_is_the_one(make: Make, tarball: Path, tree: Path) -> None:
    of_tarball, of_tree = build(tarball), build(tree)
    os.utime(of_tarball.directory / "complete.json", (1, 1))
    assert builtin.built() == of_tree
    assert builtin.built(tarball) == of_tarball
    # Building it again makes it the last one.
    assert builtin.built(build(tarball).origin) == builtin.built() == of_tarball


def test_the_fragments_are_those_of_the_configuration_in_kconfigs() -> None:
    made_by = (shipped.kconfigs() / "configs/builtin-6.1-x86_64.config").read_text().splitlines()[0]
    assert " ".join(f"-f {each}" for each in builtin.default_fragments()) in made_by


def test_only_kernels_of_the_same_fragments_count(make: Make, tarball: Path) -> None:
    kernel = build(tarball, fragments=("base", "x86"))
    assert builtin.built() is None
    assert builtin.built(fragments=("base", "x86")) == kernel


def test_a_kernel_whose_files_are_gone(make: Make, tarball: Path) -> None:
    build(tarball).vmlinux.unlink()
    assert builtin.built() is None


def test_the_key_changes_with_everything_that_goes_in() -> None:
    once = builtin.key("source", ["CONFIG_A=y\n"], "gcc 12")
    assert once == builtin.key("source", ["# why\nCONFIG_A=y\n"], "gcc 12")
    others = [
        builtin.key("other", ["CONFIG_A=y\n"], "gcc 12"),
        builtin.key("source", ["CONFIG_A=m\n"], "gcc 12"),
        builtin.key("source", ["# CONFIG_A is not set\n"], "gcc 12"),
        builtin.key("source", ["CONFIG_A=y\n", "CONFIG_B=y\n"], "gcc 12"),
        builtin.key("source", ["CONFIG_A=y\n"], "gcc 13"),
    ]
    assert len({once, *others}) == 6


def test_progress_counts_objects() -> None:
    told: list[Step] = []
    objects = kbuild.ObjectCounter(100, 896, told.append)
    for line in MAKE:
        objects.line(line)
    assert [(step.done, step.total, step.note) for step in told] == [
        (101, 896, "scripts/mod/modpost.o"),
        (102, 896, "/c/kernel/3a0b/tools/objtool/check.o"),
        (103, 896, "init/main.o"),
        (104, 896, "arch/x86/entry/entry_64.o"),
        (105, 896, "drivers/block/brd.o"),
    ]


def test_progress_never_passes_its_total() -> None:
    told: list[Step] = []
    objects = kbuild.ObjectCounter(0, 1, told.append)
    objects.line("  CC      init/main.o")
    objects.line("  CC      init/version.o")
    assert [(step.done, step.total) for step in told] == [(1, 1), (2, 2)]


def test_progress_without_a_total() -> None:
    told: list[Step] = []
    kbuild.ObjectCounter(0, None, told.append).line("  CC      init/main.o")
    assert [(step.done, step.total) for step in told] == [(1, None)]


def test_the_total_is_what_was_counted_before(make: Make, tarball: Path) -> None:
    told: list[Step] = []
    build(tarball, report=told.append)
    assert told[-1].total == builtin._OBJECTS
    tarball.touch()
    build(tarball, report=told.append)
    assert told[-1].total == 1


def test_the_environment_is_the_users_without_what_changes_the_result() -> None:
    users = {"PATH": "/bin", "HOME": "/h", "NIX_CFLAGS_COMPILE": "-x", "CCACHE_DIR": "/c", "LC_ALL": "de_DE"}
    others = {"MAKEFLAGS": "-j9", "MAKELEVEL": "1", "KBUILD_OUTPUT": "/o", "ARCH": "arm", "KCFLAGS": "-O0"}
    assert kbuild.clean_environment({**users, **others, "V": "1"}) == {
        "PATH": "/bin:/usr/sbin:/sbin",
        "HOME": "/h",
        "NIX_CFLAGS_COMPILE": "-x",
        "CCACHE_DIR": "/c",
        "LC_ALL": "C",
        "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
        "KBUILD_BUILD_USER": "vmdebug",
        "KBUILD_BUILD_HOST": "vmdebug",
        "KBUILD_BUILD_VERSION": "1",
    }


def test_a_tool_that_is_missing(tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="make is not on PATH") as caught:
        build(tarball)
    assert "apt install make" in caught.value.hint
