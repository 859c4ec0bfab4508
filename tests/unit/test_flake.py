"""The nix command lines for a flake, and the results, with a fake nix.

tests/guest/test_flake_source.py has tests with the real nix.
"""

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.guest import Guest
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.sources.nixos import flake

VM = ("config", "system", "build", "vm")


def guest(attribute: str) -> Guest:
    return Guest(kind="flake", words=f".#{attribute}", location="/src/flake?dir=vms", attribute=attribute)


@pytest.mark.parametrize(
    ("attribute", "path", "system"),
    [
        ("base-nixos", ("nixosConfigurations", "base-nixos", *VM), "base-nixos"),
        ('"a.b"', ("nixosConfigurations", "a.b", *VM), "a.b"),
        ("nixosConfigurations.base", ("nixosConfigurations", "base", *VM), "base"),
        (
            "nixosConfigurations.base.config.system.build.vmWithBootLoader",
            ("nixosConfigurations", "base", "config", "system", "build", "vmWithBootLoader"),
            "base",
        ),
        ("packages.x86_64-linux.vm", ("packages", "x86_64-linux", "vm"), ""),
    ],
)
def test_an_attribute_names_a_system_or_a_whole_path(
    attribute: str, path: tuple[str, ...], system: str
) -> None:
    target = flake.parse(guest(attribute))
    assert (target.path, target.system) == (path, system)


def test_nix_gets_the_reference_as_it_is_and_names_with_dots_in_quotes() -> None:
    assert (
        flake.parse(guest('"a.b"')).installable()
        == '/src/flake?dir=vms#.nixosConfigurations."a.b".config.system.build.vm'
    )


def test_a_flake_without_an_attribute_is_no_guest() -> None:
    with pytest.raises(UsageError, match="names a flake, but no system in it") as caught:
        flake.parse(guest(""))
    assert "/src/flake?dir=vms#NAME" in caught.value.hint


@given(st.lists(st.text(st.characters(exclude_characters='"', codec="utf-8"), min_size=1), min_size=1))
def test_an_attribute_path_is_read_as_it_is_written(names: list[str]) -> None:
    assert flake.split(flake.join(tuple(names))) == tuple(names)


class Double:
    """A fake `nix` with an answer for each subcommand; without one it fails with a message."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "nix").write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$*" >>{directory}/asked\n. {directory}/"$5"\n'
        )
        (directory / "nix").chmod(0o755)
        for subcommand in ("build", "eval"):
            self.fails(subcommand, "no answer prepared")

    def says(self, subcommand: str, answer: object) -> None:
        (self.directory / subcommand).write_text(f"echo {shlex.quote(json.dumps(answer))}")

    def fails(self, subcommand: str, words: str) -> None:
        line = "@nix " + json.dumps({"action": "msg", "level": 0, "msg": f"error: {words}"})
        (self.directory / subcommand).write_text(f"echo {shlex.quote(line)} >&2; exit 1")

    def asked(self) -> list[str]:
        return (self.directory / "asked").read_text().splitlines()


@pytest.fixture
def nix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Double:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Double(tmp_path)


def resolve(attribute: str, *nix_args: str) -> None:
    flake.resolve(
        guest(attribute), GuestOptions(nix_args=nix_args), report=silent, deadline=Deadline.after(20)
    )


ABSENT = "flake '/src/flake' does not provide attribute 'nixosConfigurations.bas.config.system.build.vm'"


def test_an_attribute_that_does_not_exist_is_answered_with_those_that_do(nix: Double) -> None:
    nix.fails("build", ABSENT)
    nix.says("eval", ["aethelred", "base", "base-nixos", "a.b"])
    with pytest.raises(UsageError, match=r"has no nixosConfigurations\.bas\n") as caught:
        resolve("bas", "--impure")
    assert caught.value.hint == 'its systems: base, base-nixos, "a.b", aethelred'
    common = "--extra-experimental-features nix-command flakes --log-format internal-json"
    flakes = "/src/flake?dir=vms#"
    # An older nix does not know the dot, and says the same.
    assert nix.asked() == [
        f"{common} build --no-link --json {flakes}.nixosConfigurations.bas.config.system.build.vm --impure",
        f"{common} build --no-link --json {flakes}nixosConfigurations.bas.config.system.build.vm --impure",
        f"{common} eval --json {flakes}.nixosConfigurations --apply builtins.attrNames --impure",
    ]


def test_a_test_with_several_nodes_is_not_built_and_its_nodes_are_listed(nix: Double) -> None:
    nix.says("eval", {"nodes": ["client", "server"], "vm": False})
    with pytest.raises(UsageError, match="is a NixOS test with 2 nodes") as caught:
        resolve("checks.x86_64-linux.net")
    assert caught.value.hint.endswith("checks.x86_64-linux.net.nodes.server")
    assert not any(" build " in each for each in nix.asked())


@pytest.mark.parametrize(
    ("attribute", "answer", "built"),
    [
        ("checks.x86_64-linux.net", {"nodes": ["machine"], "vm": False}, "net.nodes.machine.system.build.vm"),
        ("checks.x86_64-linux.net.driver", {"nodes": ["m"], "vm": False}, "driver.nodes.m.system.build.vm"),
        ("checks.x86_64-linux.net.nodes.client", {"nodes": [], "vm": True}, "nodes.client.system.build.vm"),
        ("packages.x86_64-linux.run", {"nodes": [], "vm": False}, "packages.x86_64-linux.run"),
    ],
)
def test_of_a_test_the_nodes_vm_is_built(
    nix: Double, attribute: str, answer: dict[str, object], built: str
) -> None:
    nix.says("eval", answer)
    with pytest.raises(BuildError):
        resolve(attribute)
    (asked,) = (each for each in nix.asked() if " build " in each)
    assert asked.endswith(built)


def test_a_system_that_has_no_vm_is_told_apart(nix: Double) -> None:
    nix.fails("build", ABSENT)
    nix.says("eval", ["bas"])
    with pytest.raises(UsageError, match=r"has nixosConfigurations.bas, but not nixosConfigurations.bas\."):
        resolve("bas")


def test_a_flake_without_systems_says_so(nix: Double) -> None:
    nix.fails("build", ABSENT)
    nix.fails("eval", "flake '/src/flake' does not provide attribute 'nixosConfigurations'")
    with pytest.raises(UsageError, match=r"and no nixosConfigurations\n"):
        resolve("bas")


def test_systems_that_cannot_be_listed_are_nixs_to_tell(nix: Double) -> None:
    nix.fails("build", ABSENT)
    nix.fails("eval", "unable to download")
    with pytest.raises(
        BuildError, match=r"listing the systems of /src/flake\?dir=vms: unable to download"
    ) as caught:
        resolve("bas")
    assert caught.value.detail.endswith("\nerror: unable to download")


def test_what_fails_inside_of_an_attribute_is_nixs_to_tell(nix: Double) -> None:
    nix.fails("build", "The option `boot.kernel' does not exist.")
    with pytest.raises(
        BuildError, match=r"building \.#bas: The option `boot\.kernel' does not exist\."
    ) as caught:
        resolve("bas")
    assert caught.value.detail.endswith("\nerror: The option `boot.kernel' does not exist.")


def test_a_derivation_that_is_no_vm(nix: Double, tmp_path: Path) -> None:
    nix.says("build", [{"drvPath": "/s/x.drv", "outputs": {"out": str(tmp_path)}}])
    with pytest.raises(UsageError, match="should have one script bin/run-NAME-vm; found: none"):
        resolve("packages.x86_64-linux.hello")


def test_without_nix_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="nix is not on PATH") as caught:
        resolve("base")
    assert "nix-bin" in caught.value.hint
