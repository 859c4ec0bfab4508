"""`start`: from the arguments and vmdebug.toml to `GuestOptions`, and its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit import cli_doubles
from vmdebug import cli, vm
from vmdebug.cli import options
from vmdebug.guest import LaunchSpec
from vmdebug.guest_options import GuestOptions, StartOptions

TOML = """
default = "base"
[guest.base]
source = ".#base-nixos"
memory = "2G"
halt = true
append = "quiet"
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[GuestOptions]:
    """The options passed to the sources; nothing is started."""
    calls: list[GuestOptions] = []
    monkeypatch.chdir(tmp_path)

    def resolve(wanted: GuestOptions, **_: Any) -> LaunchSpec:
        calls.append(wanted)
        return cli_doubles.spec(halt=wanted.halt)

    monkeypatch.setattr("vmdebug.sources.resolve", resolve)
    monkeypatch.setattr("vmdebug.vm.launch", lambda spec, **_: cli_doubles.machine(spec.name, "halted"))
    return calls


def test_every_option_arrives(asked: list[GuestOptions]) -> None:
    machine = "-S --name n --kernel /k --vmlinux /v --gdb-scripts /g --kaslr --accel kvm --memory 1G --cpus 3"
    machine += " --firmware uefi --debuginfod --initrd /i --root host --root-dev 2 --root-image never"
    machine += " --init none --keep --modules none --module /a.ko --module /b.ko --no-load-modules"
    machine += " --net user --net segment=lab --forward :22 --forward 8080:80/udp"
    machine += " --share /s:/mnt:rw --login --trace-ready no --record /r.vmdrec --force"
    more = "--disk /d --tcp 1234 --override-input nixpkgs path:/n --impure --nix-arg -L"
    words = ["start", "bzImage", *machine.split(), *more.split()]
    assert cli.status_of([*words, "--append", "a=1 b", "--", "-device", "virtio-rng-pci", "--", "x"]) == 0
    assert asked == [
        GuestOptions(
            source="bzImage",
            name="n",
            halt=True,
            kernel="/k",
            vmlinux="/v",
            gdb_scripts="/g",
            debuginfod=True,
            append="a=1 b",
            kaslr=True,
            accel="kvm",
            memory=1024,
            cpus=3,
            disk="/d",
            initrd="/i",
            modules="none",
            module=("/a.ko", "/b.ko"),
            load_modules=False,
            root="host",
            root_dev=2,
            root_image="never",
            init="none",
            keep=True,
            net=("user", "segment=lab"),
            forward=(":22", "8080:80/udp"),
            share=("/s:/mnt:rw",),
            login=True,
            trace_ready="no",
            record="/r.vmdrec",
            force=True,
            firmware="uefi",
            tcp=1234,
            qemu_args=("-device", "virtio-rng-pci", "--", "x"),
            nix_args=("--override-input", "nixpkgs", "path:/n", "--impure", "-L"),
        )
    ]
    given = asked[0]
    unchanged = {
        each for each in StartOptions.__annotations__ if getattr(given, each) == getattr(GuestOptions(), each)
    }
    assert not unchanged


def test_without_words_it_is_the_builtin_guest(asked: list[GuestOptions]) -> None:
    assert cli.status_of(["start"]) == 0
    assert asked == [GuestOptions()]


def test_options_go_before_vmdebug_toml(asked: list[GuestOptions], tmp_path: Path) -> None:
    (tmp_path / "vmdebug.toml").write_text(TOML)
    assert cli.status_of(["start", "--no-halt", "--append", "debug"]) == 0
    found = asked[0]
    assert (found.memory, found.halt, found.append) == (2048, False, "debug")
    assert found.source == f"{tmp_path}#base-nixos"


@pytest.mark.parametrize(
    ("words", "rewritten"),
    [
        (["--tcp"], ["--tcp=0"]),
        (["--tcp", "--halt"], ["--tcp=0", "--halt"]),
        (["--tcp", "1234", "g"], ["--tcp", "1234", "g"]),
        (["--override-input", "a", "b", "c"], ["--override-input", "a b", "c"]),
    ],
)
def test_what_typer_cannot_parse_is_rewritten(words: list[str], rewritten: list[str]) -> None:
    assert options.rewritten(words) == rewritten


@pytest.mark.parametrize("words", [["--memory", "much"], ["--cpus", "0"], ["--tcp", "70000"]])
def test_what_cannot_be_right_is_refused_by_its_name(
    words: list[str], asked: list[GuestOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["start", *words]) == 2
    assert asked == []
    assert words[1] in (err := capsys.readouterr().err) or words[0] in err


def test_it_says_what_was_started(asked: list[GuestOptions], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["start", "--halt"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for said in (
        "halted",
        "tcg: asked for",
        "/src/linux/vmlinux",
        "the tree /src/linux",
        "nokaslr",
        "/run/vmdebug/linux/gdb.sock",
    ):
        assert said in err
    assert "vmdebug attach linux" in err


def test_the_facts_as_json(asked: list[GuestOptions], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of(["start", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "linux"
    assert facts["status"] == "halted"


def test_a_dry_run_prints_a_command_to_paste(
    asked: list[GuestOptions], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = vm.Plan(argv=("qemu", "-append", "a b"), env={"X": "y"}, accel="tcg", reason="asked for")
    monkeypatch.setattr("vmdebug.vm.plan", lambda *_, **__: plan)
    assert cli.status_of(["start", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out == "X=y \\\n  qemu \\\n  -append 'a b'\n"
    assert '"guest": "/src/linux"' in err
    assert "tcg: asked for" in err


def test_a_dry_run_as_json_is_the_spec(
    asked: list[GuestOptions], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = vm.Plan(argv=("qemu",), env={}, accel="tcg", reason="asked for")
    monkeypatch.setattr("vmdebug.vm.plan", lambda *_, **__: plan)
    assert cli.status_of(["start", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "linux"
