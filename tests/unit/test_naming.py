from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import kernelfiles
from vmdebug.errors import UsageError, VmdebugError
from vmdebug.guest import Guest
from vmdebug.guest_options import GuestOptions
from vmdebug.sources import naming


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a guest of each kind."""
    here = tmp_path / "here"
    (here / "result/bin").mkdir(parents=True)
    (here / "result/bin/run-my-vm-vm").write_text("#!/bin/sh\n")
    (here / "flake").mkdir()
    (here / "flake/flake.nix").write_text("{}")
    (here / "linux/init").mkdir(parents=True)
    (here / "linux/init/Kconfig").write_text("")
    (here / "bzImage").write_bytes(kernelfiles.raw_bzimage(b""))
    return here


def refusal(words: str, here: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        naming.parse(words, here)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_builtin(here: Path) -> None:
    assert naming.parse("builtin", here) == Guest(kind="builtin", words="builtin")


@pytest.mark.parametrize(
    ("words", "reference", "attribute"),
    [
        (".#base-nixos", "{here}", "base-nixos"),
        ("#base-nixos", "{here}", "base-nixos"),
        ("./flake#a.b", "{here}/flake", "a.b"),
        ("./flake?dir=sub#a", "{here}/flake?dir=sub", "a"),
        ("github:me/repo#a", "github:me/repo", "a"),
        ("nixpkgs#a", "nixpkgs", "a"),
        (".#", "{here}", ""),
        ('.#nixosConfigurations."a.b"', "{here}", 'nixosConfigurations."a.b"'),
    ],
)
def test_a_flakes_system(here: Path, words: str, reference: str, attribute: str) -> None:
    assert naming.parse(words, here) == Guest(
        kind="flake", words=words, location=reference.format(here=here), attribute=attribute
    )


def test_paths_of_options_become_absolute(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    wanted = GuestOptions(source="linux", modules="m", module=("a.ko", "/b.ko"))
    made = naming.absolute_paths(wanted)
    assert (made.modules, made.module) == (str(here / "m"), (str(here / "a.ko"), "/b.ko"))
    assert naming.absolute_paths(GuestOptions(modules="none")).modules == "none"


@pytest.mark.parametrize("words", ["result", "result/", "./result/bin/run-my-vm-vm"])
def test_a_runner(here: Path, words: str) -> None:
    script = str(here / "result/bin/run-my-vm-vm")
    assert naming.parse(words, here) == Guest(kind="runner", words=words, location=script)


def test_a_tree_is_known_before_it_is_built(here: Path) -> None:
    assert naming.parse("linux", here) == Guest(kind="tree", words="linux", location=str(here / "linux"))


def test_an_image(here: Path) -> None:
    assert naming.parse("bzImage", here) == Guest(
        kind="image", words="bzImage", location=str(here / "bzImage")
    )


def test_a_hash_sign_in_a_path_that_exists_belongs_to_the_path(here: Path) -> None:
    (here / "a#b").write_bytes(kernelfiles.raw_bzimage(b""))
    assert naming.parse("a#b", here).kind == "image"


def test_the_current_directory_is_where_relative_paths_start(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    assert naming.parse("linux").location == str(here / "linux")


class TestNoGuest:
    def test_nothing_of_that_name_tells_each_form_that_was_tried(self, here: Path) -> None:
        error = refusal("gone", here)
        assert error.message == f"'gone' names no guest: {here}/gone does not exist"
        assert "FLAKEREF#NAME" in error.hint
        assert "it has no `#`" in error.detail
        assert "no vmdebug.toml" in error.detail

    def test_a_name_like_one_of_vmdebug_toml(self, here: Path) -> None:
        (here / "vmdebug.toml").write_text("[guest.base]\n[guest.patched]\n")
        error = refusal("pached", here)
        assert error.hint == "did you mean 'patched'?"
        assert f"{here}/vmdebug.toml has base, patched" in error.detail

    def test_a_flake_without_a_system(self, here: Path) -> None:
        assert refusal("flake", here).hint == "write flake#NAME"
        assert refusal("github:me/repo", here).hint == "write github:me/repo#NAME"

    def test_a_flake_in_a_directory_that_is_not_there(self, here: Path) -> None:
        assert f"{here}/fleck, which does not exist" in refusal("./fleck#a", here).message

    def test_a_directory_of_nothing(self, here: Path) -> None:
        error = refusal(".", here)
        assert error.message == f"{here} is a directory, but not a guest"
        assert error.hint == f"give the image in it: {here}/bzImage"
        for form in ("bin/run-NAME-vm", "vmlinux", "flake.nix"):
            assert form in error.detail

    def test_several_runners(self, here: Path) -> None:
        (here / "result/bin/run-other-vm").write_text("")
        assert "run-my-vm-vm, run-other-vm" in refusal("result", here).message

    def test_a_vmlinux_is_not_what_boots(self, here: Path) -> None:
        kernelfiles.vmlinux(here / "vmlinux")
        assert f'vmlinux="{here}/vmlinux"' in refusal("vmlinux", here).hint

    def test_a_file_of_another_kind(self, here: Path) -> None:
        (here / "notes.txt").write_text("no kernel")
        error = refusal("notes.txt", here)
        assert error.message == f"{here}/notes.txt is not a guest"
        assert "'HdrS' is not at 0x202" in error.detail

    def test_a_link_to_what_is_gone(self, here: Path) -> None:
        (here / "old").symlink_to("/nix/store/collected")
        assert "is a link to /nix/store/collected, which does not exist" in refusal("old", here).message

    def test_no_words(self, here: Path) -> None:
        assert "empty" in refusal("", here).message


@given(st.text() | st.text("./#~?:ab\0", max_size=8))
def test_any_words_are_a_guest_or_an_error_of_ours(words: str) -> None:
    try:
        guest = naming.parse(words, Path("/nowhere"))
    except VmdebugError:
        return
    assert guest.words == words


class TestName:
    @pytest.mark.parametrize(
        ("guest", "name"),
        [
            (Guest(kind="builtin", words="builtin"), "builtin"),
            (Guest(kind="tree", words="", location="/src/linux"), "linux"),
            (Guest(kind="tree", words="", location="/src/my tree!"), "my-tree"),
            (Guest(kind="image", words="", location="/boot/vmlinuz-6.1.0"), "vmlinuz-6.1.0"),
            (Guest(kind="runner", words="", location="/r/bin/run-my-vm-vm"), "my-vm"),
            (Guest(kind="flake", words="", location="/p", attribute="base-nixos"), "base-nixos"),
            (Guest(kind="flake", words="", attribute="nixosConfigurations.a.config.system.build.vm"), "a"),
            (Guest(kind="flake", words="", attribute='nixosConfigurations."a.b"'), "a.b"),
            (Guest(kind="flake", words="", location="/src/p", attribute=""), "p"),
            (Guest(kind="tree", words="", location="/"), "guest"),
            (Guest(kind="tree", words="", location="/" + "x" * 100), "x" * 40),
        ],
    )
    def test_after_the_guest(self, guest: Guest, name: str) -> None:
        assert naming.vm_name(guest, GuestOptions()) == name

    def test_the_table_goes_before_the_guest_and_the_user_before_both(self) -> None:
        guest = Guest(kind="tree", words="", location="/src/linux")
        assert naming.vm_name(guest, GuestOptions(table="fast")) == "fast"
        assert naming.vm_name(guest, GuestOptions(table="fast", name="mine")) == "mine"

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-x", "ä", "a\n"])
    def test_a_name_that_cannot_be_a_directorys(self, name: str) -> None:
        with pytest.raises(UsageError, match="letters, digits") as caught:
            naming.vm_name(Guest(kind="builtin", words=""), GuestOptions(name=name))
        assert "name=" in caught.value.hint
