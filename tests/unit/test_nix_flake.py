"""vmdebug's flake, evaluated by the real nix with tests/fixtures/nixpkgs-stand-in."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.fixtures.ourflake import OurFlake, a_source, evaluated
from vmdebug.errors import BuildError

SYSTEMS = ("base", "aethelred")
KERNELS = ("nixos", "upstream", "own")
GUESTS = {f"{system}-{kernel}" for system, kernel in product(SYSTEMS, KERNELS)}

PACKAGES = (
    {"vmdebug", "default", "ccache-check", "nixos-rebuild"}
    | {f"vm-{guest}" for guest in GUESTS}
    | {f"gdb-scripts-{kernel}" for kernel in KERNELS}
    | {f"disk-image-aethelred-{kernel}" for kernel in KERNELS}
)

VARIANT = "config.virtualisation.vmVariant"


@pytest.fixture(scope="module")
def flake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurFlake]:
    ours = evaluated(tmp_path_factory.mktemp("ourflake"))
    yield ours
    ours.remove()


def overriding(flake: OurFlake, **inputs: Path) -> OurFlake:
    given = {name.replace("_", "-"): path for name, path in inputs.items()}
    return dataclasses.replace(flake, inputs={**flake.inputs, **given})


def test_nix_flake_show_lists_everything(flake: OurFlake) -> None:
    shown = json.loads(flake.nix("flake show --json", flake.url).stdout)
    per_system = ("apps", "checks", "devShells", "packages")
    assert {name: set(shown[name]["x86_64-linux"]) for name in per_system} == {
        "apps": {"default", "ccache"},
        "checks": {"lint", "unit"} | {f"boots-{guest}" for guest in GUESTS},
        "devShells": {"default", "kernel"},
        "packages": PACKAGES,
    }
    assert set(shown["nixosConfigurations"]) == GUESTS
    assert set(shown["nixosModules"]) == {"default", "vmdebug", "kernel", "kgdb"}
    assert set(shown["templates"]) == {"default"}


def test_nix_itself_finds_nothing_wrong_with_it(flake: OurFlake) -> None:
    """nix knows the type of each output, and evaluates it."""
    assert flake.nix("flake check --no-build", flake.url).status == 0


@pytest.mark.parametrize("output", ["packages", "checks", "devShells"])
def test_every_derivation_evaluates(flake: OurFlake, output: str) -> None:
    found = flake.evaluate(f"{output}.x86_64-linux", "builtins.mapAttrs (_: each: each.drvPath)")
    assert all(path.endswith(".drv") for path in found.values())


def test_every_systems_vm_evaluates_with_every_kernel(flake: OurFlake) -> None:
    found = flake.evaluate(
        "nixosConfigurations", "builtins.mapAttrs (_: guest: guest.config.system.build.vm.drvPath)"
    )
    assert set(found) == GUESTS
    assert len(set(found.values())) == len(GUESTS)


def test_busyboxs_applets_hide_nobodys_programs(flake: OurFlake) -> None:
    """Its package has a link for each applet, and make would use its tar, awk and cpio."""
    wrapped = flake.evaluate("packages.x86_64-linux.vmdebug.makeWrapperArgs", "map toString")
    (directory,) = (path for path in wrapped[-1].split(":") if "busybox" in path)
    assert directory.endswith("-busybox-static/bin")


def test_tests_of_guests_go_to_builders_with_kvm(flake: OurFlake) -> None:
    found = flake.evaluate(
        "checks.x86_64-linux", "builtins.mapAttrs (_: each: each.requiredSystemFeatures or [ ])"
    )
    assert {name for name, features in found.items() if "kvm" in features} == {
        f"boots-{guest}" for guest in GUESTS
    }


def test_a_guest_can_be_debugged_and_cloned(flake: OurFlake) -> None:
    facts = flake.evaluate(
        f"nixosConfigurations.base-nixos.{VARIANT}",
        """vm: {
          inherit (vm.virtualisation) graphics useNixStoreImage sharedDirectories;
          autologin = vm.services.getty.autologinUser;
          params = vm.boot.kernelParams;
        }""",
    )
    assert facts == {
        "graphics": False,
        "useNixStoreImage": True,
        # 9p: such a guest can be neither saved nor cloned.
        "sharedDirectories": {},
        "autologin": "root",
        "params": ["loglevel=7", "nokaslr"],
    }


def test_a_guest_has_the_agent_that_runs_commands(flake: OurFlake) -> None:
    unit = flake.evaluate(
        f"nixosConfigurations.base-nixos.{VARIANT}",
        """vm: {
          inherit (vm.systemd.services.vmdebug-agent) wantedBy before script serviceConfig;
        }""",
    )
    assert unit["wantedBy"] == ["multi-user.target"]
    assert unit["before"] == ["getty.target"]
    assert unit["serviceConfig"] == {"KillMode": "process", "Restart": "always"}
    assert unit["script"].splitlines()[-1].endswith("-vmdebug-agent/bin/vmdebug-agent")


def test_the_machine_that_a_guest_is_a_vm_of_stays_as_it_is(flake: OurFlake) -> None:
    facts = flake.evaluate(
        "nixosConfigurations.base-nixos.config",
        "of: [ of.services.getty.autologinUser of.boot.kernelParams of.environment.systemPackages ]",
    )
    assert facts == [None, ["loglevel=4"], []]


def test_a_kernels_version_is_that_of_its_source(flake: OurFlake, tmp_path: Path) -> None:
    own = a_source(tmp_path / "own", version=7, patchlevel=1, extra="-rc3")
    (own / "localversion-next").write_text("-next-20261123\n")
    found = overriding(flake, kernel_own=own).evaluate(
        "nixosConfigurations",
        'guests: map (kernel: guests."base-${kernel}".config.boot.kernelPackages.kernel.modDirVersion) '
        '[ "upstream" "own" ]',
    )
    assert found == ["6.12.7", "7.1.7-rc3-next-20261123"]


def test_another_source_is_another_kernel_for_all_that_use_it(flake: OurFlake, tmp_path: Path) -> None:
    """kernel-own is the same as kernel-src until it is set."""
    other = overriding(flake, kernel_src=a_source(tmp_path / "other", patchlevel=15))
    version = "builtins.mapAttrs (_: guest: guest.config.boot.kernelPackages.kernel.version)"
    found = other.evaluate("nixosConfigurations", version)
    assert {found[f"{system}-{kernel}"] for system in SYSTEMS for kernel in ("upstream", "own")} == {"6.15.7"}
    assert found["base-nixos"] == "6.1.0-host"


def test_a_machine_needs_its_modules_and_a_vm_does_not(flake: OurFlake) -> None:
    """NixOS's list for VMs has modules that our kernels lack; a machine needs its own list to boot."""
    guest = "nixosConfigurations.aethelred-upstream.config"
    missing = "config: config.boot.initrd.allowMissingModules"
    assert flake.evaluate(guest, missing) is False
    assert flake.evaluate(f"{guest}.virtualisation.vmVariant", missing) is True
    assert flake.evaluate(f"nixosConfigurations.base-nixos.{VARIANT}", missing) is False


def test_an_older_nixos_is_told_by_an_overlay(flake: OurFlake, tmp_path: Path) -> None:
    """boot.initrd.allowMissingModules is newer than 25.05."""
    older = tmp_path / "nixpkgs"
    shutil.copytree(flake.inputs["nixpkgs"], older)
    module = older / "nixos/kernel.nix"
    declared = "    initrd.allowMissingModules = option types.bool false;\n"
    assert declared in module.read_text()
    module.write_text(module.read_text().replace(declared, ""))
    closure = """overlays: map (overlay:
      (overlay { } { makeModulesClosure = given: given; }).makeModulesClosure { rootModules = [ "ext4" ]; }
    ) overlays"""
    of = overriding(flake, nixpkgs=older).evaluate
    overlays = f"nixosConfigurations.aethelred-upstream.{VARIANT}.nixpkgs.overlays"
    assert of(overlays, closure) == [{"rootModules": ["ext4"], "allowMissing": True}]
    assert of("nixosConfigurations.aethelred-upstream.config.nixpkgs.overlays", "builtins.length") == 0


@pytest.mark.parametrize(
    ("line", "modular", "stub"),
    [
        # A defconfig has only options that differ from their Kconfig default.
        ('{ fragments = [ "debug" ]; }', True, True),
        ('{ base = "tinyconfig"; fragments = [ "gdb" ]; }', False, False),
        ('{ base = "tinyconfig"; fragments = [ "pc" ]; }', True, True),
        ("{ base = ./none.config; }", False, False),
    ],
)
def test_nixos_is_told_what_base_and_fragments_have(
    flake: OurFlake, tmp_path: Path, line: str, *, modular: bool, stub: bool
) -> None:
    """Otherwise nixpkgs has no output for modules, and NixOS refuses systemd-boot."""
    module = f"""{{
      imports = [ vmdebug.nixosModules.kernel ];
      vmdebug.kernel.name = "mine";
      vmdebug.kernels.mine = {line} // {{ src = vmdebug.inputs.kernel-src; }};
    }}"""
    mine = theirs(flake, tmp_path, module)
    text = '# CONFIG_MODULES is not set\nCONFIG_LOCALVERSION="-mine"\n'
    (tmp_path / "flake/none.config").write_text(text)
    kernel = "nixosConfigurations.theirs.config.boot.kernelPackages.kernel"
    outputs, features, released = mine.evaluate(kernel, "of: [ of.outputs of.features of.modDirVersion ]")
    assert (("modules" in outputs), ("efiBootStub" in features)) == (modular, stub)
    assert released.endswith("-mine") is ("none.config" in line)


def test_a_directory_that_is_no_kernels_source_is_named(flake: OurFlake, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "Makefile").write_text("all:\n")
    with pytest.raises(BuildError) as caught:
        overriding(flake, kernel_own=empty).evaluate(
            f"nixosConfigurations.base-own.{VARIANT}.system.build.vm.drvPath"
        )
    assert "does not say its VERSION: is it a kernel's source?" in caught.value.detail


def test_a_kernels_line_has_its_parameters(flake: OurFlake) -> None:
    params = flake.evaluate("nixosConfigurations.base-own.config.boot.kernelParams")
    assert "loglevel=8" in params


def test_the_physical_machine_answers_to_kgdb(flake: OurFlake) -> None:
    params = flake.evaluate("nixosConfigurations.aethelred-upstream.config.boot.kernelParams")
    assert {"kgdboc=ttyS0,115200", "console=ttyS0,115200n8", "nokaslr"} <= set(params)


def test_its_image_and_what_it_switches_to_later_mount_the_same(flake: OurFlake) -> None:
    apply = """guest: map (config: builtins.mapAttrs (_: each: each.device) config.fileSystems)
      [ guest.config guest.config.system.build.images.raw-efi.passthru.config ]"""
    own, image = flake.evaluate("nixosConfigurations.aethelred-upstream", apply)
    assert own == image
    assert own == {"/": "/dev/disk/by-label/nixos", "/boot": "/dev/disk/by-label/ESP"}


def test_its_hardwares_file_is_taken_as_it_was_fetched(flake: OurFlake) -> None:
    """nixos-generate-config writes file systems with UUIDs into it."""
    apply = """guest: (guest.extendModules {
      modules = [ { fileSystems."/" = { device = "/dev/disk/by-uuid/1234"; fsType = "btrfs"; }; } ];
    }).config.fileSystems."/".device"""
    assert flake.evaluate("nixosConfigurations.aethelred-nixos", apply) == "/dev/disk/by-label/nixos"


# --- another flake ---

THEIRS = """\
{{
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
  inputs.vmdebug.url = "github:OWNER/vmdebug";

  outputs = {{ self, nixpkgs, vmdebug }}: {{
    nixosConfigurations.theirs = nixpkgs.lib.nixosSystem {{
      modules = [
        {{
          nixpkgs.hostPlatform = "x86_64-linux";
          system.stateVersion = "25.05";
          boot.loader.grub.enable = false;
          fileSystems."/".device = "/dev/vda";
        }}
        vmdebug.nixosModules.vmdebug
        {module}
      ];
    }};
    packages.x86_64-linux = vmdebug.lib.packagesFor self.nixosConfigurations;
    nixosConfigurations.untouched = nixpkgs.lib.nixosSystem {{
      modules = [ {{ system.stateVersion = "25.05"; }} ];
    }};
    debuggable = vmdebug.lib.debuggable self.nixosConfigurations.untouched;
  }};
}}
"""


def theirs(flake: OurFlake, directory: Path, module: str = "{ }") -> OurFlake:
    """A flake with this vmdebug as an input."""
    (directory / "flake").mkdir()
    (directory / "flake/flake.nix").write_text(THEIRS.format(module=module))
    return using_ours(flake, directory)


def using_ours(flake: OurFlake, directory: Path) -> OurFlake:
    inputs = {f"vmdebug/{name}": path for name, path in flake.inputs.items()}
    ours = {"vmdebug": flake.directory / "flake", "nixpkgs": flake.inputs["nixpkgs"]}
    return OurFlake(
        directory=directory,
        inputs={**ours, "nixpkgs/host": flake.inputs["nixpkgs/host"], **inputs},
        env=flake.env,
    )


def test_three_lines_make_an_existing_flakes_guest_one_of_ours(flake: OurFlake, tmp_path: Path) -> None:
    mine = theirs(flake, tmp_path)
    assert mine.evaluate(f"nixosConfigurations.theirs.{VARIANT}.virtualisation.sharedDirectories") == {}
    names = mine.evaluate("packages.x86_64-linux", "builtins.attrNames")
    assert names == ["gdb-scripts-theirs", "gdb-scripts-untouched", "vm-theirs", "vm-untouched"]


def test_a_system_is_made_debuggable_without_touching_it(flake: OurFlake, tmp_path: Path) -> None:
    mine = theirs(flake, tmp_path)
    assert mine.evaluate("debuggable.options.vmdebug", "builtins.attrNames") != []
    assert mine.evaluate("nixosConfigurations.untouched.options", "options: options ? vmdebug") is False


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("{ vmdebug.clonabel = true; }", "The option `vmdebug.clonabel' does not exist."),
        ('{ vmdebug.clonable = "yes"; }', "option `vmdebug.clonable' is not of type `boolean'"),
        (
            '{ imports = [ vmdebug.nixosModules.kernel ]; vmdebug.kernel.name = "mine"; }',
            "vmdebug.kernel.name is mine; there are: nixos",
        ),
        (
            """{
              imports = [ vmdebug.nixosModules.kernel ];
              vmdebug.kernel.name = "mine";
              vmdebug.kernels.mine = { src = vmdebug.inputs.kernel-src; fragments = [ "debgu" ]; };
            }""",
            "there is no fragment debgu; those of kconfigs/: base, ",
        ),
    ],
)
def test_what_is_mistyped_is_named(flake: OurFlake, tmp_path: Path, module: str, said: str) -> None:
    mine = theirs(flake, tmp_path, module)
    with pytest.raises(BuildError) as caught:
        mine.evaluate("nixosConfigurations.theirs.config.system.build.vm.drvPath")
    assert said in caught.value.detail


def test_ccache_is_asked_for(flake: OurFlake, tmp_path: Path) -> None:
    module = """{ config, ... }: {
      imports = [ vmdebug.nixosModules.kernel ];
      vmdebug.kernels.mine = { src = vmdebug.inputs.kernel-src; fragments = [ "debug" ]; };
      vmdebug.kernel = { name = "mine"; ccache.enable = ENABLE; };
    }"""
    flags = {}
    for enable in ("true", "false"):
        directory = tmp_path / enable
        directory.mkdir()
        mine = theirs(flake, directory, f"({module.replace('ENABLE', enable)})")
        kernel = "nixosConfigurations.theirs.config.boot.kernelPackages.kernel"
        flags[enable] = mine.evaluate(kernel, "kernel: [ kernel.extraMakeFlags kernel.preConfigure ]")
    assert flags["false"] == [[], ""]
    (compiler,), report = flags["true"]
    assert compiler.startswith("CC=/")
    assert "cannot write /var/cache/ccache here; compiling without" in report


def test_the_template_is_a_flake_with_guests(flake: OurFlake, tmp_path: Path) -> None:
    mine = using_ours(flake, tmp_path)
    shutil.copytree(flake.evaluate("templates.default.path"), tmp_path / "flake")
    mine = dataclasses.replace(mine, inputs={**mine.inputs, "kernel-src": flake.inputs["kernel-src"]})
    found = mine.evaluate(
        "nixosConfigurations", "builtins.mapAttrs (_: guest: guest.config.system.build.vm.drvPath)"
    )
    assert set(found) == {"guest-nixos", "guest-mine"}
    assert mine.evaluate("devShells.x86_64-linux.default.drvPath").endswith(".drv")
