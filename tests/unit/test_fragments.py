from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.sources.configuration import dotconfig, fragments

OURS = sorted(path.stem for path in shipped.kconfigs().glob("*.config"))


def names(*wanted: str) -> list[str]:
    return [each.name for each in fragments.with_needs([fragments.load(name) for name in wanted])]


def test_what_a_head_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.config"
    path.write_text(
        "# Why.\n# Needs: base gdb\n# Wishes: SMP\n\n# Needs: x86\nCONFIG_SMP=y\n# CONFIG_NET is not set\n"
    )
    mine = fragments.load(str(path))
    assert (mine.needs, mine.wishes) == (("base", "gdb"), frozenset({"CONFIG_SMP"}))
    assert mine.options == {"CONFIG_SMP": "y", "CONFIG_NET": "n"}


def test_needs_come_first_and_once() -> None:
    assert names("vm-boot", "gdb") == ["base", "x86", "vm-boot", "debug", "gdb"]


def test_the_order_of_the_wanted_ones_is_kept_where_needs_allow() -> None:
    assert names("gdb", "base") == ["base", "debug", "gdb"]
    assert names("lockdep", "ext4") == ["lockdep", "ext4"]


@pytest.mark.parametrize("name", OURS)
def test_each_of_ours_needs_fragments_that_there_are_and_wishes_for_what_it_asks(name: str) -> None:
    ours = fragments.load(name)
    assert set(ours.needs) <= set(OURS)
    assert ours.wishes <= set(ours.options)


def test_a_later_one_counts_and_is_named(tmp_path: Path) -> None:
    for name, value in (("a", "y"), ("b", "m")):
        (tmp_path / name).write_text(f"CONFIG_BRD={value}\n")
    both = [fragments.load(str(tmp_path / name)) for name in ("a", "b")]
    assert fragments.asked(both) == {"CONFIG_BRD": ("m", both[1])}


def test_a_file_that_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("EXT4_FS=y\n")
    with pytest.raises(UsageError, match="sets no option"):
        fragments.load(str(tmp_path / "empty"))


KEPT = sorted((shipped.kconfigs() / "configs").glob("*.config"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_configuration_has_all_that_the_fragments_of_its_command_ask_for(path: Path) -> None:
    text = path.read_text()
    words = text.partition("\n")[0].split()
    assert words[:6] == ["#", "Made", "by:", "vmdebug", "kernel", "config"]
    given = [fragments.load(words[at + 1]) for at, word in enumerate(words) if word == "-f"]
    merged = fragments.with_needs(given)
    wishes = frozenset[str]().union(*(each.wishes for each in merged))
    has = dotconfig.options(text)
    for option, (value, _) in fragments.asked(merged).items():
        assert option in wishes or has.get(option, "n") == value, option


def test_a_nix_build_passes_over_wishes_too(tmp_path: Path) -> None:
    config, fragment = tmp_path / ".config", tmp_path / "mine.config"
    config.write_text("CONFIG_NET=y\n")
    fragment.write_text("# Why.\n# Wishes: SMP\n\nCONFIG_SMP=y\nCONFIG_NET=y\nCONFIG_BUG=y\n")
    script = Path(__file__).parents[2] / "nix" / "kernel" / "stuck.sh"
    done = process.run(["sh", script, config, fragment], deadline=Deadline.after(20), check=False)
    assert done.status == 1
    assert re.findall(r"CONFIG_\w+", done.stderr) == ["CONFIG_BUG"]
