from pathlib import Path

import pytest

from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.process import Completed
from vmdebug.sources import builtin
from vmdebug.sources.configuration import dotconfig, fragments, merging
from vmdebug.sources.configuration.merging import Unmet

CONFIG = """\
# Automatically generated file; DO NOT EDIT.
CONFIG_SMP=y
CONFIG_NR_CPUS=8
CONFIG_BLK_DEV_RAM=m
CONFIG_CMDLINE="a=1 b"
# CONFIG_ACPI is not set
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source with three options in its Kconfig files."""
    (tmp_path / "src/fs").mkdir(parents=True)
    (tmp_path / "src/Kconfig").write_text('source "fs/Kconfig"\nconfig SMP\n\tbool "SMP"\n')
    (tmp_path / "src/fs/Kconfig.net").write_text("config 9P_FS\n\ttristate\n\nmenuconfig NET\n\tbool\n")
    return tmp_path / "src"


def test_the_options_of_a_config() -> None:
    assert dotconfig.options(CONFIG) == {
        "CONFIG_SMP": "y",
        "CONFIG_NR_CPUS": "8",
        "CONFIG_BLK_DEV_RAM": "m",
        "CONFIG_CMDLINE": '"a=1 b"',
        "CONFIG_ACPI": "n",
    }


def test_all_that_stuck(source: Path) -> None:
    assert merging.unmet("CONFIG_SMP=y\n# CONFIG_ACPI is not set\n", CONFIG, source) == ()


def test_off_and_absent_are_the_same(source: Path) -> None:
    assert merging.unmet("# CONFIG_NET is not set\n", CONFIG, source) == ()


def test_what_did_not_stick(source: Path) -> None:
    requested = "CONFIG_NET=y\nCONFIG_ACPI=y\n# CONFIG_SMP is not set\nCONFIG_NR_CPUS=64\nCONFIG_9P_FS=y\n"
    assert merging.unmet(requested, CONFIG, source) == (
        Unmet("CONFIG_NET", "y", "n", known=True),
        Unmet("CONFIG_ACPI", "y", "n", known=False),
        Unmet("CONFIG_SMP", "n", "y", known=True),
        Unmet("CONFIG_NR_CPUS", "64", "8", known=False),
        Unmet("CONFIG_9P_FS", "y", "n", known=True),
    )


def test_a_dropped_option_is_refused(source: Path) -> None:
    unmet = merging.unmet("CONFIG_9P_FS=y\nCONFIG_ACPI=y\n", CONFIG, source)
    with pytest.raises(BuildError, match="1 options of the fragments could not be set") as caught:
        merging.check_met(unmet, source)
    assert "config 9P_FS" in caught.value.hint
    assert caught.value.detail.startswith("CONFIG_9P_FS: wanted y, is n")


def test_an_option_of_another_version_is_not_refused(source: Path) -> None:
    unmet = merging.unmet("CONFIG_ACPI=y\n", CONFIG, source)
    merging.check_met(unmet, source)
    assert [option.known for option in unmet] == [False]


def test_a_fragment_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.config").touch()
    monkeypatch.chdir(tmp_path)
    assert fragments.find("base") == shipped.kconfigs() / "base.config"
    assert fragments.find("mine.config") == tmp_path / "mine.config"


def test_a_fragment_that_is_none() -> None:
    with pytest.raises(UsageError, match="there is no fragment bsae") as caught:
        fragments.find("bsae")
    assert "base, " in caught.value.hint


def test_the_merging_commands(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ran = tmp_path / "out", []
    out.mkdir()

    def run(argv: list[str], **options: object) -> Completed:
        ran.append((list(map(str, argv)), options.get("cwd")))
        (out / "requested.config").write_text("CONFIG_NET=y\n")
        (out / ".config").write_text(CONFIG)
        return Completed((), 0, "", "")

    monkeypatch.setattr(process, "run", run)
    unmet = merging.merge(
        source,
        out,
        [Path("/k/a.config"), Path("/k/b.config")],
        make=("make", "CC=gcc"),
        deadline=Deadline.after(1),
    )
    script = f"{source}/scripts/kconfig/merge_config.sh"
    assert ran == [
        ([script, "-m", "-O", str(out), "/k/a.config", "/k/b.config"], out),
        (
            [
                *("make", "CC=gcc", "-C", str(source), f"O={out}"),
                *(f"KCONFIG_ALLCONFIG={out}/requested.config", "allnoconfig"),
            ],
            None,
        ),
    ]
    assert [option.option for option in unmet] == ["CONFIG_NET"]


@pytest.mark.parametrize("path", sorted(shipped.kconfigs().glob("*.config")), ids=lambda path: path.stem)
def test_each_fragment_begins_with_its_reason(path: Path) -> None:
    assert path.read_text().startswith("# ")


def test_the_builtin_fragments_do_not_contradict_each_other() -> None:
    seen: dict[str, str] = {}
    for name in builtin.default_fragments():
        for option, value in dotconfig.options(fragments.find(name).read_text()).items():
            assert seen.setdefault(option, value) == value, option
