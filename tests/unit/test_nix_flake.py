"""vmdebug's flake, evaluated by the real nix with tests/fixtures/nixpkgs-stand-in.

`make test-nixlib NIXPKGS=DIR` uses a real nixpkgs instead.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.fixtures.ourflake import IMAGES, TESTS, WHOLE, OurFlake, a_source, evaluated
from vmdebug.errors import BuildError
from vmdebug.process import Completed

SYSTEMS = ("base", "aethelred")
KERNELS = ("nixos", "upstream", "own")
GUESTS = {f"{system}-{kernel}" for system, kernel in product(SYSTEMS, KERNELS)}

PACKAGES = (
    {"vmdebug", "default", "ccache-check", "nixos-rebuild"}
    | {f"vm-{guest}" for guest in GUESTS}
    | {f"gdb-scripts-{kernel}" for kernel in KERNELS}
    | {f"disk-image-aethelred-{kernel}" for kernel in KERNELS if IMAGES}
)

VARIANT = "config.virtualisation.vmVariant"

of_the_stand_in = pytest.mark.skipif(WHOLE, reason="it changes the stand-in's own files")
of_images = pytest.mark.skipif(not IMAGES, reason="this nixpkgs has no system.build.images")
of_tests = pytest.mark.skipif(not TESTS, reason="this nixpkgs has no packages of NixOS's test driver")


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
    assert set(shown["nixosModules"]) == {"default", "vmdebug", "kernel", "kgdb", "test"}
    assert set(shown["templates"]) == {"default"}


def test_nix_itself_finds_nothing_wrong_with_it(flake: OurFlake) -> None:
    """nix knows the type of each output, and evaluates it."""
    assert flake.nix("flake check --no-build", flake.url).status == 0


DERIVATIONS = (
    *(("packages", name) for name in sorted(PACKAGES)),
    *(("checks", name) for name in ("lint", "unit", *(f"boots-{guest}" for guest in sorted(GUESTS)))),
    *(("devShells", name) for name in ("default", "kernel")),
)


@pytest.mark.parametrize(("output", "name"), DERIVATIONS)
def test_every_derivation_evaluates(flake: OurFlake, output: str, name: str) -> None:
    assert flake.evaluate(f"{output}.x86_64-linux.{name}.drvPath").endswith(".drv")


@of_the_stand_in
def test_a_nixpkgs_without_import_linter_will_do(flake: OurFlake, tmp_path: Path) -> None:
    """Most releases have none."""
    other = tmp_path / "nixpkgs"
    shutil.copytree(flake.inputs["nixpkgs"], other)
    packages = other / "pkgs.nix"
    text = packages.read_text()
    assert '"import-linter"\n' in text
    packages.write_text(text.replace('      "import-linter"\n', ""))
    of = overriding(flake, nixpkgs=other).evaluate
    assert of("checks.x86_64-linux.lint.drvPath").endswith(".drv")
    assert of("devShells.x86_64-linux.default.drvPath").endswith(".drv")


@pytest.mark.parametrize("guest", sorted(GUESTS))
def test_every_system_and_its_vm_evaluate_with_every_kernel(flake: OurFlake, guest: str) -> None:
    build = """build: [ build.vm.drvPath build.toplevel.drvPath ]"""
    vm, toplevel = flake.evaluate(f"nixosConfigurations.{guest}.config.system.build", build)
    assert vm.endswith("-nixos-vm.drv")
    assert "-nixos-system-" in toplevel


def test_no_name_in_packages_needs_a_guest(flake: OurFlake, tmp_path: Path) -> None:
    """One that does not evaluate costs its own packages and no others."""
    mine = theirs(flake, tmp_path)
    file = tmp_path / "flake/flake.nix"
    broken = """
    nixosConfigurations.broken = nixpkgs.lib.nixosSystem {
      modules = [ { nixpkgs.hostPlatform = "x86_64-linux"; no.such.option = 1; } ];
    };
    nixosConfigurations.dead = throw "no system";
    """
    file.write_text(file.read_text().replace("    debuggable =", f"{broken}    debuggable ="))
    names = mine.evaluate("packages.x86_64-linux", "builtins.attrNames")
    assert {"vm-broken", "gdb-scripts-broken", "vm-dead", "vm-theirs"} <= set(names)
    assert mine.evaluate("packages.x86_64-linux.vm-theirs.drvPath").endswith("-nixos-vm.drv")
    with pytest.raises(BuildError) as caught:
        mine.evaluate("packages.x86_64-linux.vm-broken.drvPath")
    assert "The option `no" in caught.value.detail
    assert "does not exist" in caught.value.detail


# What the stand-in's module system is held to, and nixpkgs' own as well.
SEMANTICS = (
    # A wrapper with the key of the file that it imports is the only one of the two that counts.
    ("{ key = toString FILE; imports = [ FILE ]; }", "options: options ? of_the_file", False),
    ("{ imports = [ FILE FILE ]; }", "options: options ? of_the_file", True),
    # Of a list the last module's definition comes first, and an order overrules that.
    ('{ imports = [ { list = [ "a" ]; } { list = [ "b" ]; } ]; }', "config: config.list", ["b", "a"]),
    (
        '{ imports = [ { list = lib.mkAfter [ "a" ]; } { list = [ "b" ]; } ]; }',
        "config: config.list",
        ["b", "a"],
    ),
    (
        '{ imports = [ { list = [ "a" ]; } { list = lib.mkBefore [ "b" ]; } ]; }',
        "config: config.list",
        ["b", "a"],
    ),
    ('{ list = lib.mkMerge [ [ "a" ] (lib.mkIf false [ "b" ]) ]; }', "config: config.list", ["a"]),
    # The strongest definitions of an option count, and of an attribute in it.
    (
        '{ imports = [ { set.a = "x"; } { set = lib.mkOverride 90 { b = "y"; }; } ]; }',
        "config: config.set",
        {"b": "y"},
    ),
    (
        '{ imports = [ { set.a = "x"; } { set.a = lib.mkDefault "z"; set.b = "y"; } ]; }',
        "config: config.set",
        {"a": "x", "b": "y"},
    ),
    (
        "{ imports = [ { sub.n.flag = true; } { sub.n.flag = lib.mkDefault false; } ]; }",
        "config: config.sub.n.flag",
        True,
    ),
    ("{ sub.n = { }; }", "config: config.sub.n.called", "n"),
    ("{ pkgs, ... }: { list = [ pkgs.word ]; }", "config: config.list", ["given"]),
    ('{ either = [ "x" ]; }', "config: config.either", ["x"]),
)
REFUSED = (
    ('{ flag = "yes"; }', "is not of type `boolean'"),
    ("{ nosuch = 1; }", "The option `nosuch' does not exist"),
    ("{ sub.n.nosuch = 1; }", "The option `sub.n.nosuch' does not exist"),
    ("{ config = { }; flag = true; }", "has an unsupported attribute `flag'"),
    ("{ imports = [ { flag = true; } { flag = false; } ]; }", "conflicting definition values"),
    (
        "{ imports = [ { raw = 1; } { raw = 2; } ]; }",
        "is defined multiple times while it's expected to be unique",
    ),
    ("{ fixed = 2; }", "is read-only, but it's set multiple times"),
)


def evaluated_module(
    flake: OurFlake, directory: Path, module: str, value: str, *, check: bool = True
) -> Completed:
    file = directory / "module.nix"
    file.write_text("{ lib, ... }: { options.of_the_file = lib.mkOption { default = 1; }; }\n")
    kind = value.partition(":")[0]
    return flake.expression(
        f"""
        let
          option = type: lib.mkOption {{ inherit type; }};
          inherit (lib) types;
          result = lib.evalModules {{
            modules = [
              {{
                options = {{
                  list = option (types.listOf types.str);
                  set = option (types.attrsOf types.str);
                  flag = option types.bool;
                  raw = option types.raw;
                  either = option (types.either types.str (types.listOf types.str));
                  fixed = lib.mkOption {{ default = 1; readOnly = true; }};
                  sub = option (types.attrsOf (types.submodule ({{ name, ... }}: {{
                    options.flag = option types.bool;
                    options.called = lib.mkOption {{ type = types.str; default = name; }};
                  }})));
                }};
                config._module.args.pkgs.word = "given";
              }}
              ({module.replace("FILE", str(file))})
            ];
          }};
        in ({value}) result.{kind}
        """,
        check=check,
    )


@pytest.mark.parametrize(("module", "value", "wanted"), SEMANTICS)
def test_modules_are_put_together_as_by_nixpkgs(
    flake: OurFlake, tmp_path: Path, module: str, value: str, wanted: object
) -> None:
    """And the tests of our modules mean something."""
    assert json.loads(evaluated_module(flake, tmp_path, module, value).stdout) == wanted


@pytest.mark.parametrize(("module", "said"), REFUSED)
def test_modules_are_refused_as_by_nixpkgs(flake: OurFlake, tmp_path: Path, module: str, said: str) -> None:
    names = [name for name in ("flag", "raw", "fixed", "sub") if name in module]
    value = "config: [ " + " ".join(f"(builtins.toJSON config.{name})" for name in names) + " config.fixed ]"
    done = evaluated_module(flake, tmp_path, module, value, check=False)
    assert done.status != 0
    assert said in done.stderr


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
          inherit (vm.virtualisation) graphics useNixStoreImage sharedDirectories writableStore;
          inherit (vm.boot.initrd.systemd) emergencyAccess;
          autologin = vm.services.getty.autologinUser;
          params = vm.boot.kernelParams;
        }""",
    )
    params = facts.pop("params")
    assert {"loglevel=7", "nokaslr"} <= set(params)
    assert "loglevel=4" not in params
    assert facts == {
        "graphics": False,
        "useNixStoreImage": True,
        # 9p: such a guest can be neither saved nor cloned.
        "sharedDirectories": {},
        # An overlay over it, or nothing could be built in the guest.
        "writableStore": True,
        # A shell on the console if the initrd fails.
        "emergencyAccess": True,
        "autologin": "root",
    }


def test_a_guest_has_the_agent_that_runs_commands(flake: OurFlake) -> None:
    unit = flake.evaluate(
        f"nixosConfigurations.base-nixos.{VARIANT}",
        """vm: {
          inherit (vm.systemd.services.vmdebug-agent) wantedBy before script;
          serviceConfig = { inherit (vm.systemd.services.vmdebug-agent.serviceConfig) KillMode Restart; };
        }""",
    )
    assert unit["wantedBy"] == ["multi-user.target"]
    assert unit["before"] == ["getty.target"]
    assert unit["serviceConfig"] == {"KillMode": "process", "Restart": "always"}
    assert unit["script"].splitlines()[-1].endswith("-vmdebug-agent/bin/vmdebug-agent")


def test_the_machine_that_a_guest_is_a_vm_of_stays_as_it_is(flake: OurFlake) -> None:
    toplevels = """guest: map (each: each.config.system.build.toplevel.drvPath) [
      guest
      (guest.extendModules { modules = [ { vmdebug.enable = false; } ]; })
    ]"""
    ours, without = flake.evaluate("nixosConfigurations.base-nixos", toplevels)
    assert ours == without


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
    assert found["base-nixos"] not in {"6.12.7", "6.15.7"}


def test_no_kernels_source_is_an_input_until_it_is_given(flake: OurFlake) -> None:
    """Every flake that has ours as an input would fetch it."""
    versions = flake.without("kernel-src").evaluate(
        "nixosConfigurations",
        """guests: map (kernel: guests."base-${kernel}".config.boot.kernelPackages.kernel.version)
          [ "upstream" "own" ]""",
    )
    own = flake.evaluate("packages.x86_64-linux.gdb-scripts-nixos.version")
    assert versions == [own, own]
    metadata = json.loads(flake.without("kernel-src").nix("flake metadata --json", flake.url).stdout)
    assert metadata["locks"]["nodes"]["root"]["inputs"]["kernel-src"] == ["nixpkgs"]


def test_a_machine_needs_its_modules_and_a_vm_does_not(flake: OurFlake) -> None:
    """NixOS's list for VMs has modules that our kernels lack; a machine needs its own list to boot."""
    guest = "nixosConfigurations.aethelred-upstream.config"
    if not flake.evaluate(
        "nixosConfigurations.base-nixos.options.boot.initrd", "of: of ? allowMissingModules"
    ):
        # An older NixOS: an overlay says so.
        assert flake.evaluate(f"{guest}.nixpkgs.overlays", "builtins.length") == 0
        assert flake.evaluate(f"{guest}.virtualisation.vmVariant.nixpkgs.overlays", "builtins.length") == 1
        return
    missing = "config: config.boot.initrd.allowMissingModules"
    assert flake.evaluate(guest, missing) is False
    assert flake.evaluate(f"{guest}.virtualisation.vmVariant", missing) is True
    assert flake.evaluate(f"nixosConfigurations.base-nixos.{VARIANT}", missing) is False


@of_the_stand_in
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
    assert "has no VERSION: is it a kernel source tree?" in caught.value.detail


def test_a_kernels_line_has_its_parameters(flake: OurFlake) -> None:
    params = flake.evaluate("nixosConfigurations.base-own.config.boot.kernelParams")
    # The kernel takes the last one, and NixOS has one of its own.
    assert [each for each in params if each.startswith("loglevel=")][-1] == "loglevel=8"


def test_the_physical_machine_answers_to_kgdb(flake: OurFlake) -> None:
    params = flake.evaluate("nixosConfigurations.aethelred-upstream.config.boot.kernelParams")
    assert {"kgdboc=ttyS0,115200", "console=ttyS0,115200n8", "nokaslr"} <= set(params)


@of_images
def test_its_image_and_what_it_switches_to_later_mount_the_same(flake: OurFlake) -> None:
    apply = """guest: map (config: builtins.mapAttrs (_: each: each.device) config.fileSystems)
      [ guest.config guest.config.system.build.images.raw-efi.passthru.config ]"""
    own, image = flake.evaluate("nixosConfigurations.aethelred-upstream", apply)
    assert own == image
    assert own == {"/": "/dev/disk/by-label/nixos", "/boot": "/dev/disk/by-label/ESP"}


IMAGE = "nixosConfigurations.aethelred-upstream.config.system.build.images.raw-efi.passthru.config"


@of_images
def test_its_image_grows_to_its_disk(flake: OurFlake) -> None:
    grows = (
        """config: [ config.boot.growPartition config.fileSystems."/".autoResize config.image.filePath ]"""
    )
    partition, filesystem, name = flake.evaluate(IMAGE, grows)
    assert (partition, filesystem) == (True, True)
    assert name.startswith("nixos-image-")


@of_the_stand_in
def test_an_image_of_an_older_nixos_grows_too(flake: OurFlake, tmp_path: Path) -> None:
    """Its module's file systems were stronger than a configuration's own, and its name ended in `.raw`."""
    older = tmp_path / "nixpkgs"
    shutil.copytree(flake.inputs["nixpkgs"], older)
    module = older / "nixos/disk-image.nix"
    text = module.read_text()
    assert "fileSystems = {" in text
    text = text.replace("fileSystems = {", "fileSystems = lib.mkImageMediaOverride {")
    module.write_text(text.replace('if cfg.format == "raw" then "img" else cfg.format', "cfg.format"))
    grows = (
        """config: [ config.boot.growPartition config.fileSystems."/".autoResize config.image.extension ]"""
    )
    assert overriding(flake, nixpkgs=older).evaluate(IMAGE, grows) == [True, True, "raw"]


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
      modules = [ {{ nixpkgs.hostPlatform = "x86_64-linux"; system.stateVersion = "25.05"; }} ];
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
    host = {name: path for name, path in flake.inputs.items() if name == "nixpkgs/host"}
    return OurFlake(
        directory=directory,
        inputs={**ours, **host, **inputs},
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
            "there is no fragment debgu; kconfigs/ has: base, ",
        ),
    ],
)
def test_what_is_mistyped_is_named(flake: OurFlake, tmp_path: Path, module: str, said: str) -> None:
    mine = theirs(flake, tmp_path, module)
    with pytest.raises(BuildError) as caught:
        mine.evaluate("nixosConfigurations.theirs.config.system.build.vm.drvPath")
    assert said in caught.value.detail


A_TEST = """
    checks.x86_64-linux.theirs = (import (nixpkgs + "/nixos/lib") {{ inherit (nixpkgs) lib; }}).runTest {{
      imports = [ vmdebug.lib.testModule ];
      name = "theirs";
      hostPkgs = nixpkgs.legacyPackages.x86_64-linux;
      nodes.one = {{ {one} }};
      nodes.two = {{ virtualisation.vlans = [ 1 2 ]; }};
      testScript = {{ nodes, ... }}: "import vmdebug; print('${{nodes.one.system.build.vm}}')";
    }};
"""


def with_a_test(flake: OurFlake, directory: Path, one: str = "") -> OurFlake:
    mine = theirs(flake, directory)
    file = directory / "flake/flake.nix"
    checks = A_TEST.format(one=one)
    file.write_text(file.read_text().replace("    debuggable =", f"{checks}    debuggable ="))
    return mine


CHECK = "checks.x86_64-linux.theirs"


@of_tests
def test_a_nixos_test_has_vmdebug_in_its_driver_and_our_module_in_its_nodes(
    flake: OurFlake, tmp_path: Path
) -> None:
    mine = with_a_test(flake, tmp_path)
    assert mine.evaluate(f"{CHECK}.driver.drvPath").endswith(
        "-nixos-test-driver-theirs.drv" if WHOLE else ".drv"
    )
    facts = mine.evaluate(
        f"{CHECK}.nodes.one",
        """node: {
          params = builtins.elem "nokaslr" node.boot.kernelParams;
          agent = node.systemd.services.vmdebug-agent.serviceConfig ? ExecCondition;
          shell = node.systemd.services.vmdebug-shell.unitConfig.ConditionPathExists;
        }""",
    )
    assert facts == {"params": True, "agent": True, "shell": "!/dev/hvc0"}
    for node in ("one", "two"):
        assert mine.evaluate(f"{CHECK}.nodes.{node}.system.build.vm.drvPath").endswith("-nixos-vm.drv")


@of_tests
def test_a_node_that_is_to_be_cloned_has_no_9p_and_a_store_that_can_be_written_to(
    flake: OurFlake, tmp_path: Path
) -> None:
    mine = with_a_test(flake, tmp_path, "vmdebug.test = { clonable = true; shell = false; };")
    facts = mine.evaluate(
        f"{CHECK}.nodes.one",
        """node: [ node.virtualisation.sharedDirectories node.virtualisation.writableStore
          (node.systemd.services ? vmdebug-agent) ]""",
    )
    assert facts == [{}, True, False]


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
        flags[enable] = mine.evaluate(
            kernel,
            """kernel: [ (builtins.filter (each: builtins.substring 0 3 each == "CC=") kernel.commonMakeFlags)
              (kernel.preConfigure or "") ]""",
        )
    (bare,), nothing = flags["false"]
    assert nothing == ""
    (first, compiler), report = flags["true"]
    assert first == bare
    assert compiler.startswith("CC=/")
    assert compiler != bare
    assert "cannot write /var/cache/ccache here; compiling without" in report


KERNEL = "nixosConfigurations.theirs.config.boot.kernelPackages.kernel"


def a_kernel(line: str) -> str:
    return f"""{{
      imports = [ vmdebug.nixosModules.kernel ];
      vmdebug.kernel.name = "mine";
      vmdebug.kernels.mine = {{ src = vmdebug.inputs.kernel-src; }} // {line};
    }}"""


@pytest.mark.parametrize(
    ("line", "warned", "stripped"),
    [
        ('{ fragments = [ "debug" ]; }', True, True),
        ('{ fragments = [ "debug" ]; stripModules = true; }', False, True),
        ('{ fragments = [ "debug" ]; stripModules = false; }', False, False),
        ("{ }", False, True),
        ('{ base = "tinyconfig"; fragments = [ "debug" ]; }', False, True),
    ],
)
def test_modules_that_lose_their_debug_information_are_told_of(
    flake: OurFlake, tmp_path: Path, line: str, *, warned: bool, stripped: bool
) -> None:
    """nixpkgs strips every kernel's."""
    mine = theirs(flake, tmp_path, a_kernel(line))
    warnings = mine.evaluate("nixosConfigurations.theirs.config.warnings")
    assert any("vmdebug.kernels.mine.stripModules = false to keep it" in each for each in warnings) is warned
    assert mine.evaluate(KERNEL, "kernel: kernel.dontStrip or false") is not stripped


def test_a_kernel_without_modules_has_its_symbols_too(flake: OurFlake, tmp_path: Path) -> None:
    """nixpkgs makes its output `dev`, with vmlinux, only where there are modules."""
    mine = theirs(flake, tmp_path, a_kernel('{ base = "tinyconfig"; fragments = [ "debug" ]; }'))
    outputs, script = mine.evaluate(KERNEL, "kernel: [ kernel.outputs kernel.postInstall ]")
    assert outputs == ["out", "dev"]
    assert "cp vmlinux $dev/" in script


def test_the_template_is_a_flake_with_guests(flake: OurFlake, tmp_path: Path) -> None:
    mine = using_ours(flake, tmp_path)
    shutil.copytree(flake.evaluate("templates.default.path"), tmp_path / "flake")
    mine = dataclasses.replace(mine, inputs={**mine.inputs, "kernel-src": flake.inputs["kernel-src"]})
    found = mine.evaluate(
        "nixosConfigurations", "builtins.mapAttrs (_: guest: guest.config.system.build.vm.drvPath)"
    )
    assert set(found) == {"guest-nixos", "guest-mine"}
    assert mine.evaluate("devShells.x86_64-linux.default.drvPath").endswith(".drv")
