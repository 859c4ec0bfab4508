"""Deployment: the exact command lines, and the errors for a host that refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError, VmdebugError
from vmdebug.guest import Guest, Kernel
from vmdebug.process import Completed
from vmdebug.sources.nixos import deployments, rebuild
from vmdebug.sources.nixos.deployments import Deployment
from vmdebug.sources.nixos.flake import Target

BOX = "brendan@192.168.2.3"
SYSTEM = ("nixosConfigurations", "aethelred-base", "config", "system", "build", "toplevel")
TARGET = Target("…", "/src/flake", SYSTEM, "aethelred-base", ("--impure",))
SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", BOX, "--"]


def soon() -> Deadline:
    return Deadline.after(60)


class TestWhatCanBeDeployed:
    @pytest.mark.parametrize("attribute", ["aethelred-base", "nixosConfigurations.aethelred-base"])
    def test_a_system_of_a_flake(self, attribute: str) -> None:
        guest = Guest(kind="flake", words="…", location="/src/flake", attribute=attribute)
        assert rebuild.target_of(guest, ("--impure",)) == TARGET

    def test_no_other_guest(self) -> None:
        with pytest.raises(UsageError, match="builtin is not a NixOS system of a flake"):
            rebuild.target_of(Guest(kind="builtin", words="builtin"))

    def test_no_package(self) -> None:
        guest = Guest(kind="flake", words=".#packages.x.vm", location="/f", attribute="packages.x.vm")
        with pytest.raises(UsageError, match="not one of its flake's nixosConfigurations"):
            rebuild.target_of(guest)

    @pytest.mark.parametrize("words", ["", "-oProxyCommand=evil", "a host"])
    def test_no_host_that_ssh_takes_for_something_else(self, words: str) -> None:
        with pytest.raises(UsageError, match="is not a host"):
            rebuild.host_of(words)


class TestCommandLines:
    def test_of_nixos_rebuild(self) -> None:
        argv = rebuild.argv("nixos-rebuild", "switch", TARGET, host=BOX, options=("--sudo",), more=("-L",))
        assert argv == [
            *("nixos-rebuild", "switch", "--flake", "/src/flake#aethelred-base"),
            *("--target-host", BOX, "--sudo", "--impure", "-L"),
        ]

    def test_of_nixos_rebuild_as_root(self) -> None:
        argv = rebuild.argv("/bin/nixos-rebuild", "boot", TARGET, host="root@box")
        assert argv[:2] == ["/bin/nixos-rebuild", "boot"]
        assert argv[-3:] == ["--target-host", "root@box", "--impure"]

    def test_its_ssh_keeps_the_options_of_the_user(self) -> None:
        options = "-o BatchMode=yes -o ConnectTimeout=10"
        assert rebuild.environment({}) == {"NIX_SSHOPTS": options}
        assert rebuild.environment({"NIX_SSHOPTS": "-p 23"}) == {"NIX_SSHOPTS": f"-p 23 {options}"}

    def test_of_the_facts(self) -> None:
        shown = "nixos-generate-config --show-hardware-config"
        assert rebuild.facts(BOX, sudo=False) == [*SSH, shown]
        assert rebuild.facts(BOX, sudo=True) == [*SSH, f"sudo -n {shown}"]

    def test_of_the_questions_before_and_after(self) -> None:
        nixos = "test -e /etc/NIXOS || exit 90"
        assert rebuild.preflight(BOX, sudo=False) == [*SSH, f"sh -c '{nixos}'"]
        assert rebuild.preflight(BOX, sudo=True) == [*SSH, f"sh -c '{nixos}; sudo -n true || exit 91'"]
        assert rebuild.booted(BOX) == [*SSH, "readlink -f /run/booted-system/kernel"]

    def test_where_nixos_rebuild_comes_from(self) -> None:
        tails = [argv[argv.index("--json") + 1 :] for argv in rebuild.packages(TARGET)]
        assert tails == [
            ["/src/flake#nixos-rebuild", "--impure"],
            ["nixpkgs#nixos-rebuild-ng", "--inputs-from", "/src/flake"],
            ["nixpkgs#nixos-rebuild", "--inputs-from", "/src/flake"],
        ]


@pytest.mark.parametrize(
    ("program", "usage", "options"),
    [
        ("nixos-rebuild", "[--use-remote-sudo] [--no-flake]", ("--use-remote-sudo",)),
        ("nixos-rebuild", "--sudo, --use-remote-sudo", ("--sudo",)),
        ("nixos-rebuild", "[--ask-sudo-password] [--sudo] [--no-reexec]", ("--sudo", "--no-reexec")),
        ("nixos-rebuild", "--elevate {none,sudo,run0} ... --sudo Alias for --elevate=sudo.", ("--sudo",)),
        ("nixos-rebuild", "No manual entry for nixos-rebuild", ("--use-remote-sudo",)),
        ("nixos-rebuild-ng", "No manual entry for nixos-rebuild-ng", ("--sudo",)),
    ],
)
def test_how_it_is_told_to_become_root_and_to_stay_what_it_is(
    program: str, usage: str, options: tuple[str, ...]
) -> None:
    assert rebuild.options_of(Path(program), usage, sudo=True) == options
    assert rebuild.options_of(Path(program), usage, sudo=False) == options[1:]


@pytest.mark.parametrize(
    ("status", "stderr", "kind", "said"),
    [
        (255, "Permission denied (publickey).", HostError, "does not accept a login without a password"),
        (255, "Host key verification failed.", HostError, "is not known to ssh"),
        (255, "No route to host", HostError, "ssh cannot connect to brendan@192.168.2.3"),
        (90, "", HostError, "does not run NixOS"),
        (91, "", HostError, "sudo on brendan@192.168.2.3 asks for a password"),
        (1, "oops", BuildError, "ended with status 1"),
    ],
)
def test_what_a_refusal_means(status: int, stderr: str, kind: type[VmdebugError], said: str) -> None:
    error = rebuild.failure(BOX, Completed(("ssh", BOX), status, "", stderr))
    assert type(error) is kind
    assert said in error.message
    assert stderr in error.detail


class TestWhatIsRemembered:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def one(self, host: str, vmlinux: Path | None = None) -> Deployment:
        kernel = Kernel(arch="x86_64", image=Path("/k/bzImage"), origin="a test", vmlinux=vmlinux)
        return Deployment(host=host, guest=".#box", toplevel=Path("/nix/store/x"), kernel=kernel)

    def test_the_only_machine_need_not_be_named(self) -> None:
        deployments.remember(self.one(BOX), deadline=soon())
        assert deployments.find(None) == deployments.find(BOX) == self.one(BOX)

    def test_of_several_one_is_named(self) -> None:
        deployments.remember(self.one(BOX), deadline=soon())
        deployments.remember(self.one("root@box"), deadline=soon())
        assert deployments.find("root@box") == self.one("root@box")
        with pytest.raises(UsageError) as caught:
            deployments.find(None)
        assert caught.value.hint.endswith("deployed to: brendan@192.168.2.3, root@box")

    def test_nothing(self) -> None:
        with pytest.raises(UsageError, match="nothing was deployed to root@box"):
            deployments.find("root@box")

    def test_symbols_that_have_gone(self) -> None:
        deployments.remember(self.one(BOX, Path("/nix/store/gone/vmlinux")), deadline=soon())
        with pytest.raises(UsageError, match="no longer exist: /nix/store/gone/vmlinux") as caught:
            deployments.find(BOX)
        assert caught.value.hint == "build them again: --guest .#box"
