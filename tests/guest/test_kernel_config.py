"""`kernel config` with the source of the builtin kernel, and options that cannot be set."""

from __future__ import annotations

import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest

from vmdebug import arch, process, shipped
from vmdebug.cli import status_of
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.sources import builtin, kbuild
from vmdebug.sources.configuration import dotconfig, fragments, new_options, reasons, requirements

_OF_THE_MACHINE = re.compile(r"CONFIG_(?:CC|GCC|CLANG|AS|LD|LLD|PAHOLE|RUSTC|TOOLS)_\w*")
"""Options that depend on the compiler."""

OF_5_10 = "config: conf --oldaskconfig"
"""Makefile rules that do not name their programs."""


@pytest.fixture(scope="module")
def source() -> Path:
    built = builtin.built()
    assert built is not None
    return built.source


def configure(source: Path, out: Path, *words: str) -> int:
    return status_of(["kernel", "config", "--source", str(source), "-o", str(out), *words])


def options(out: Path) -> dict[str, str]:
    return dotconfig.options((out / ".config").read_text())


def test_fragments_on_tinyconfig_bring_what_they_build_on_and_check_accepts_them(
    source: Path, tmp_path: Path
) -> None:
    assert configure(source, tmp_path, "--base", "tinyconfig", "-f", "vm-boot", "-f", "gdb") == 0
    assert options(tmp_path)["CONFIG_GDB_SCRIPTS"] == "y"
    assert status_of(["kernel", "check", str(tmp_path)]) == 0
    assert status_of(["kernel", "config", "--check", str(tmp_path)]) == 1


@pytest.mark.parametrize("base", ["tinyconfig", "defconfig", "FILE"])
def test_the_configuration_that_was_there_is_kept(source: Path, tmp_path: Path, base: str) -> None:
    """Each make renames the .config that it finds, which is no longer the user's."""
    mine, other = tmp_path / "o/.config", tmp_path / "other"
    mine.parent.mkdir()
    mine.write_text("# hours of work\nCONFIG_MINE=y\n")
    other.write_text("CONFIG_64BIT=y\n")
    given = str(other) if base == "FILE" else base
    assert configure(source, mine.parent, "--base", given, "-f", "ext4") == 0
    assert mine.with_name(".config.old").read_text() == "# hours of work\nCONFIG_MINE=y\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--base hello -f ext4 -o o", "hello is not a kernel configuration: it has no CONFIG_… line"),
        (
            "--base defconfig -f 'a b.config' -o o",
            "a b.config': the kernel's build tools accept no path with a blank",
        ),
        ("--base defconfig -f ext4 -o 'o o'", "o o': the kernel's build tools accept no path with a blank"),
    ],
)
def test_what_the_kernels_tools_would_stumble_over_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hello").write_text("hello\n")
    Path("a b.config").write_text("CONFIG_EXT4_FS=y\n")
    argv = [
        sys.executable,
        "-m",
        "vmdebug.cli",
        "kernel",
        "config",
        *shlex.split(f"--source {source} {words}"),
    ]
    done = process.run(argv, deadline=Deadline.after(60), check=False)
    assert done.status == 2
    assert said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b.config", "hello"]


@pytest.mark.parametrize("fragment", ["kasan", "kcov", "kcsan", "pc"])
def test_a_fragment_brings_what_it_builds_on(source: Path, tmp_path: Path, fragment: str) -> None:
    assert configure(source, tmp_path, "--base", "tinyconfig", "-f", fragment) == 0


@pytest.mark.parametrize("rules", ["this kernel's", OF_5_10])
def test_what_cannot_stick_is_named_with_what_stopped_it(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rules: str,
) -> None:
    """Also with the Makefile rules of Linux 5.10, which do not name their programs."""
    if rules != "this kernel's":
        as_if_its_rules_were(rules, tmp_path, monkeypatch)
    (tmp_path / "mine").write_text(
        "CONFIG_EXPERT=y\nCONFIG_9P_FS=y\nCONFIG_HZ_100=y\nCONFIG_HZ_250=y\nCONFIG_NO_SUCH_THING=y\nCONFIG_PRINTK=y\n"
    )
    assert configure(source, tmp_path / "o", "-f", str(tmp_path / "mine"), "--json") == 1
    dropped = {each["option"]: each for each in json.loads(capsys.readouterr().out)["dropped"]}
    assert dropped["CONFIG_NO_SUCH_THING"]["why"] == "this kernel has no such option"
    nine = dropped["CONFIG_9P_FS"]
    # Newer kernels do not need INET.
    without = nine["why"].replace("INET [=n] and ", "")
    assert without == "depends on NETWORK_FILESYSTEMS [=n] and NET_9P [=n]"
    assert nine["add_fragment"] == "nixos-boot"
    (taken,) = dropped.keys() & {"CONFIG_HZ_100", "CONFIG_HZ_250"}
    assert dropped[taken]["why"].startswith("its choice is set to HZ_")
    assert "CONFIG_PRINTK" not in dropped


def as_if_its_rules_were(rules: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the program as with other Makefile rules, in the build directory `o`."""
    (directory / "scripts/kconfig").mkdir(parents=True)
    (directory / "scripts/kconfig/Makefile").write_text(rules)
    words = reasons._program_argument(directory, directory / "o")
    monkeypatch.setattr(reasons, "_program_argument", lambda *_: words)


ASKS_PYTHON = """\
config PYTHON
	def_bool $(shell,$(PYTHON3) -c "print('y')")

config WANTED
	bool "what is asked for"
	depends on PYTHON
"""


def test_kconfig_that_asks_python_is_answered_by_python(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Linux since 6.10. Where our program replaces Python, it once ran itself forever."""
    as_if_its_rules_were(OF_5_10, tmp_path, monkeypatch)
    (tmp_path / "Kconfig").write_text(ASKS_PYTHON)
    env = {**kbuild.clean_environment(), "KBUILD_KCONFIG": str(tmp_path / "Kconfig")}
    deadline = Deadline.after(60)
    process.run(kbuild.argv(source, tmp_path / "o", "allnoconfig"), env=env, deadline=deadline)
    found = reasons.ask(
        ["CONFIG_WANTED"], source=source, directory=tmp_path / "o", env=env, deadline=deadline
    )
    assert found["CONFIG_WANTED"].known
    assert found["CONFIG_WANTED"].limits == {}


def test_modules_are_built_in_where_they_can_be(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # TEST_LKM can only be a module: `depends on m`.
    (tmp_path / "mine").write_text("CONFIG_RUNTIME_TESTING_MENU=y\nCONFIG_TEST_LKM=m\n")
    words = ("-f", "base", "-f", "x86", "-f", "modules", "-f", str(tmp_path / "mine"), "--builtin", "--json")
    assert configure(source, tmp_path / "o", *words) == 0
    now = options(tmp_path / "o")
    assert (now["CONFIG_BLK_DEV_RAM"], now["CONFIG_TEST_LKM"]) == ("y", "m")
    dropped = {each["option"]: each for each in json.loads(capsys.readouterr().out)["dropped"]}
    assert dropped["CONFIG_TEST_LKM"]["why"] == "depends on m: it can only be a module"
    assert dropped["CONFIG_TEST_LKM"]["fragment"] == "--builtin"


def test_the_kept_configuration_is_that_of_the_builtin_kernel() -> None:
    """For a kernel of another series, only the options in the fragments are compared."""
    built = builtin.built()
    assert built is not None
    kept = (shipped.kconfigs() / "configs/builtin-6.1-x86_64.config").read_text()
    both = [dotconfig.options(text) for text in (kept, built.config.read_text())]
    kept_, built_ = (
        {option: value for option, value in each.items() if not _OF_THE_MACHINE.fullmatch(option)}
        for each in both
    )
    if built.release.startswith("6.1."):
        assert kept_ == built_
    asked = {option for name in builtin.default_fragments() for option in fragments.load(name).options}
    common = asked & kept_.keys() & built_.keys()
    assert len(common) > len(asked) * 0.9
    assert {each: kept_[each] for each in common} == {each: built_[each] for each in common}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--base", "nosuchconfig"), "not a target of make, and there is no file"),
        (("--base", "no_such_defconfig"), "has no such configuration"),
        (("-f", "vm-boto"), "no fragment vm-boto"),
    ],
)
def test_words_that_cannot_be_right(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert configure(source, tmp_path, *words) == 2
    assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def older(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build directory."""
    directory = tmp_path_factory.mktemp("older")
    process.run(kbuild.argv(source, directory, "-s", "outputmakefile"), deadline=Deadline.after(600))
    return directory


def without(older: Path, *names: str) -> bytes:
    """Write the builtin kernel's .config without some options, as if the source had them only since then."""
    built = builtin.built()
    assert built is not None
    lines = built.config.read_text().splitlines()
    words = tuple(f"CONFIG_{name}" for name in names)
    kept = [
        line for line in lines if line.removeprefix("# ").partition("=")[0].partition(" ")[0] not in words
    ]
    (older / ".config").write_text("\n".join(kept) + "\n")
    return (older / ".config").read_bytes()


def taken(tree: Path) -> dict[str, str]:
    return new_options.take(
        tree,
        requirements.own(arch.native()),
        make=partial(kbuild.argv, tree, tree),
        env=kbuild.environment(),
        deadline=Deadline.after(600),
    )


def test_a_default_with_which_the_kernel_cannot_boot_here_is_refused(older: Path) -> None:
    before = without(older, "SERIAL_8250_CONSOLE")
    with pytest.raises(UsageError, match="cannot boot here: CONFIG_SERIAL_8250_CONSOLE=n") as caught:
        taken(older)
    assert "-e SERIAL_8250_CONSOLE" in caught.value.hint
    assert "the console" in caught.value.detail
    assert (older / ".config").read_bytes() == before
    assert not list(older.glob(".config.*"))
    assert not (older / "include/config/auto.conf").exists()


def test_make_stops_at_new_options_and_they_get_their_defaults(older: Path) -> None:
    without(older, "BLK_DEV_RAM", "EXT2_FS")
    argv = kbuild.argv(older, older, "prepare")
    env = {**kbuild.environment(), **new_options.STOP}
    done = process.run(argv, env=env, deadline=Deadline.after(600), check=False)
    assert done.status != 0
    assert new_options.STOPPED in done.stderr
    assert taken(older) == {"CONFIG_BLK_DEV_RAM": "n", "CONFIG_EXT2_FS": "n"}
    assert "# CONFIG_EXT2_FS is not set" in (older / ".config").read_text()
    assert not list(older.glob(".config.*"))
    assert not process.run(
        kbuild.argv(older, older, "-s", "listnewconfig"), env=env, deadline=Deadline.after(600)
    ).stdout
