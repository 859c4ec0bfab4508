"""The outputs of vmdebug's flake with a real kernel, built by the real nix with the stand-in for nixpkgs."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.ourflake import OurFlake, with_kernel
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError
from vmdebug.guest import Kernel
from vmdebug.process import Completed
from vmdebug.sources.configuration import dotconfig
from vmdebug.sources.kernels import tree
from vmdebug.sources.kernels.dev_output import why_unusable

SECONDS = 240.0


@pytest.fixture(scope="module")
def flake(kernel: Kernel, initrd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurFlake]:
    ours = with_kernel(kernel, initrd, tmp_path_factory.mktemp("ourflake"))
    yield ours
    ours.remove()


def vmdebug(flake: OurFlake, *words: str) -> Completed:
    argv = [sys.executable, "-m", "vmdebug.cli", *words]
    return process.run(argv, env={**os.environ, **flake.env}, deadline=Deadline.after(SECONDS))


def expression(flake: OurFlake, text: str, *, check: bool = True) -> Completed:
    """Build an expression, with `pkgs` from the stand-in and vmdebug's functions in `ours`."""
    bound = f"""
      let
        pkgs = import {flake.inputs["nixpkgs"]}/pkgs.nix {{
          lib = import {flake.inputs["nixpkgs"]}/lib;
          host = {flake.inputs["nixpkgs/host"]};
          system = "x86_64-linux";
        }};
        ours = "{flake.directory}/flake/nix";
        inputs = {{ nixpkgs = null; kernel-src = null; kernel-own = null; }};
      in {text}
    """
    return flake.nix("build --no-link --json -L --impure --expr", bound, check=check)


def test_the_gdb_scripts_of_a_kernel_are_made_of_its_source(flake: OurFlake) -> None:
    made = flake.build("packages.x86_64-linux.gdb-scripts-nixos")
    assert why_unusable(made) == ""
    constants = (made / "scripts/gdb/linux/constants.py").read_text()
    assert re.search(r"^LX_CONFIG_HIGH_RES_TIMERS = (1|True)$", constants, re.MULTILINE)


@pytest.mark.usefixtures("ended")
def test_the_main_job_on_our_own_flake(flake: OurFlake, kernel: Kernel) -> None:
    """The commands of the README, with the flake's own guest."""
    vmdebug(flake, "start", f"{flake.url}#base-nixos", "--halt", "--accel", "tcg", *flake.nix_args)
    (found,) = json.loads(vmdebug(flake, "status", "--json").stdout)
    assert (found["status"], found["build_id"]) == ("halted", kernel.build_id)
    line = Path(f"/proc/{found['pid']}/cmdline").read_text()
    assert "-virtfs" not in line
    stopped = vmdebug(flake, "attach", "--batch", "--until", "start_kernel", "-ex", "bt").stdout
    assert "#0  start_kernel ()" in stopped
    assert vmdebug(flake, "exec", "--", "cat", "/proc/cmdline").stdout.count(" nokaslr loglevel=7 init=") == 1
    # Its store is a raw disk, which QEMU opens for writing.
    vmdebug(flake, "snapshot", "save", "base-nixos", "up")
    vmdebug(flake, "exec", "--", "touch", "/later")
    vmdebug(flake, "snapshot", "load", "base-nixos", "up")
    assert vmdebug(flake, "exec", "--", "ls", "/").stdout.split().count("later") == 0
    vmdebug(flake, "exec", "--", "modprobe", "brd")
    # Links, as when NixOS merges the modules of several packages.
    modules = vmdebug(flake, "attach", "--batch", "-ex", "vmd-modules", "-ex", "info line brd_exit").stdout
    assert 'drivers/block/brd.c" ' in modules


@pytest.fixture
def ended(flake: OurFlake) -> Iterator[None]:
    """Stop every VM at the end of a test."""
    yield
    vmdebug(flake, "stop", "--all", "--force")


def test_a_guest_is_tested_in_a_builder(flake: OurFlake, runtime: Path) -> None:
    """As on a builder with the feature; here the builder only claims it, and the guest uses TCG."""
    features = {"NIX_CONFIG": f"{flake.env['NIX_CONFIG']}system-features = kvm\n"}
    builder = OurFlake(flake.directory, flake.inputs, {**flake.env, **features})
    said = builder.build("checks.x86_64-linux.boots-base-nixos").read_text()
    assert said.startswith("breakpoint-hit at start_kernel")


def test_a_configuration_has_what_its_fragments_ask_for(flake: OurFlake) -> None:
    """Our fragments on defconfig, with the existing kernel source."""
    kernels = '(import (ours + "/kernels.nix") { inherit pkgs inputs; })'
    made = expression(flake, _configured(f"{kernels}.upstream.fragments"))
    config = Path(json.loads(made.stdout)[0]["outputs"]["out"]).read_text().splitlines()
    wanted = {"EROFS_FS", "DEBUG_INFO_DWARF5", "GDB_SCRIPTS", "KGDB_SERIAL_CONSOLE", "VT_CONSOLE"}
    assert {f"CONFIG_{option}=y" for option in wanted} <= set(config)


def test_what_nobody_asks_for_is_off_and_what_a_fragment_builds_on_comes_along(
    flake: OurFlake, kernel: Kernel, tmp_path: Path
) -> None:
    """Same as with `vmdebug kernel config`."""
    made = expression(flake, _configured('[ "vm-boot" "gdb" ]', base="allnoconfig"))
    assert kernel.vmlinux is not None
    source = tree.source(kernel.vmlinux.parent)
    vmdebug(
        flake, "kernel", "config", "--source", str(source), "-f", "vm-boot", "-f", "gdb", "-o", str(tmp_path)
    )
    theirs, ours = (
        dotconfig.options(file.read_text())
        for file in (Path(json.loads(made.stdout)[0]["outputs"]["out"]), tmp_path / ".config")
    )
    assert theirs == ours


def test_an_option_that_does_not_stick_fails_the_build_and_is_named(flake: OurFlake, tmp_path: Path) -> None:
    impossible = tmp_path / "impossible.config"
    impossible.write_text("CONFIG_GDB_SCRIPTS=y\nCONFIG_ARM_SMMU=y\n")
    built = expression(flake, _configured(f"[ {impossible} ]"), check=False)
    assert built.status != 0
    assert "vmdebug: CONFIG_ARM_SMMU: wanted y, found n" in built.stderr


def _configured(fragments: str, *, base: str = "x86_64_defconfig") -> str:
    return f"""
      (import (ours + "/kernel") {{
        inherit pkgs;
        inherit (pkgs.linux) src;
        version = "6.1.0";
        base = "{base}";
        fragments = {fragments};
      }}).configfile
    """


@pytest.mark.parametrize("there", [True, False])
def test_a_compiler_with_ccache_is_one_for_the_kernel_whether_there_is_a_cache_or_not(
    flake: OurFlake, kernel: Kernel, tmp_path: Path, *, there: bool
) -> None:
    """Without its cache nixpkgs' ccacheStdenv makes Kconfig print "this assembler is not supported"."""
    cache = tmp_path / "cache"
    if there:
        cache.mkdir()
    made = expression(
        flake, f'(import (ours + "/kernel/ccache.nix") {{ inherit pkgs; dir = "{cache}"; }}).compiler'
    )
    compiler = json.loads(made.stdout)[0]["outputs"]["out"]
    # nixpkgs builds kernels with it; what the wrapper adds, hardening for example, makes another kernel.
    assert "-gcc-unwrapped/bin/gcc " in Path(compiler).read_text()
    assert kernel.vmlinux is not None
    source = (kernel.vmlinux.parent / "source").resolve()
    script = source / "scripts/as-version.sh"
    assert process.run(["sh", script, compiler], deadline=Deadline.after(30)).stdout.startswith("GNU ")
    (tmp_path / "probe.c").write_text("int probe;\n")
    compiled = [compiler, "-c", tmp_path / "probe.c", "-o", tmp_path / "probe.o"]
    process.run(compiled, deadline=Deadline.after(30))
    assert any(cache.rglob("*")) is there


def test_builders_without_a_cache_are_told_what_to_put_where(flake: OurFlake, tmp_path: Path) -> None:
    check = f'(import (ours + "/kernel/ccache.nix") {{ inherit pkgs; dir = "{tmp_path}/none"; }}).check'
    with pytest.raises(BuildError) as caught:
        expression(flake, check)
    assert f"extra-sandbox-paths = {tmp_path}/none" in caught.value.detail


A_TEST = """
{
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
  inputs.vmdebug.url = "github:OWNER/vmdebug";
  outputs = { nixpkgs, vmdebug, ... }: {
    checks.x86_64-linux.boots = (import (nixpkgs + "/nixos/lib") { inherit (nixpkgs) lib; }).runTest {
      imports = [ vmdebug.lib.testModule ];
      name = "boots";
      hostPkgs = nixpkgs.legacyPackages.x86_64-linux;
      nodes.server = { };
      testScript = { nodes, ... }: ''
        import vmdebug

        vmlinux = "${nodes.server.boot.kernelPackages.kernel.dev}/vmlinux"
        with vmdebug.start_node(server, halt=True, vmlinux=vmlinux, accel="tcg") as session:
            session.gdb.breakpoint("start_kernel", temporary=True)
            stop = session.gdb.cont(timeout=120)
            assert stop.frame.function == "start_kernel", stop
        server.wait_for_console_text("vmdebug: guest ready")
        assert "nokaslr" in session.exec("cat /proc/cmdline").stdout
        raise AssertionError("the test fails here")
      '';
    };
  };
}
"""


@pytest.fixture
def nixos_test(flake: OurFlake, tmp_path: Path) -> OurFlake:
    """A flake with a NixOS test, and vmdebug as an input."""
    (tmp_path / "flake").mkdir()
    (tmp_path / "flake/flake.nix").write_text(A_TEST)
    ours = {f"vmdebug/{name}": path for name, path in flake.inputs.items()}
    given = {"nixpkgs", "nixpkgs/host"}
    inputs = {name: path for name, path in flake.inputs.items() if name in given}
    return OurFlake(tmp_path, {"vmdebug": flake.directory / "flake", **inputs, **ours}, flake.env)


CHECK = "checks.x86_64-linux.boots"


@pytest.mark.usefixtures("ended")
def test_a_nixos_tests_node_starts_without_the_test(nixos_test: OurFlake, kernel: Kernel) -> None:
    started = vmdebug(
        nixos_test, "start", f"{nixos_test.url}#{CHECK}", "--halt", "--accel", "tcg", *nixos_test.nix_args
    )
    assert "vlan 1: no other node can be reached" in started.stderr
    (found,) = json.loads(vmdebug(nixos_test, "status", "--json").stdout)
    assert (found["name"], found["build_id"]) == ("boots", kernel.build_id)
    stopped = vmdebug(nixos_test, "attach", "--batch", "--until", "start_kernel", "-ex", "bt").stdout
    assert "#0  start_kernel ()" in stopped
    assert vmdebug(nixos_test, "exec", "--", "echo", "up").stdout == "up\n"


@pytest.mark.usefixtures("ended", "runtime")
def test_a_nixos_test_has_breakpoints_and_keeps_its_node_if_it_fails(nixos_test: OurFlake) -> None:
    driver = nixos_test.build(f"{CHECK}.driver") / "bin/nixos-test-driver"
    environment = {**os.environ, **nixos_test.env, "VMDEBUG_KEEP": "1"}
    done = process.run([driver], env=environment, check=False, deadline=Deadline.after(SECONDS))
    assert "AssertionError: the test fails here" in done.stderr, done.stderr
    assert "its node runs on: vmdebug attach server" in done.stderr
    assert vmdebug(nixos_test, "exec", "server", "--", "echo", "kept").stdout == "kept\n"
