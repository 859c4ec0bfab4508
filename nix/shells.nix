{ pkgs, python }:
let
  programs = import ./programs.nix { inherit pkgs; };
  # The kernel's own tools are compiled without the hardening that Nix's compiler adds.
  hardeningDisable = [ "all" ];
in
{
  # `nix develop -c make demo`: the Makefile finds all of it on PATH, and so needs neither apt nor a .venv.
  default = pkgs.mkShell {
    packages = [
      (pkgs.python3.withPackages (_: python.dependencies ++ python.development))
      pkgs.ruff
      pkgs.import-linter
      (pkgs.writeShellScriptBin "vmdebug" ''exec python -m vmdebug.cli "$@"'')
    ]
    ++ programs.run
    ++ programs.tests
    ++ programs.deploy
    ++ programs.kernel;
    inherit hardeningDisable;
    VMDEBUG_NO_APT = "1";
    VMDEBUG_NO_VENV = "1";
    # In place of Debian's linux-source package.
    KERNEL_SOURCE = pkgs.linux.src;
    shellHook = ''
      # The checkout is not installed, and so is no plugin by itself.
      export PYTHONPATH=$PWD''${PYTHONPATH:+:$PYTHONPATH} PYTEST_PLUGINS=vmdebug.pytest_plugin
    '';
  };

  # `nix develop FLAKE#kernel`, then make menuconfig, make -j, in a kernel's tree.
  kernel = pkgs.mkShell {
    # Some of the kernel's scripts are Python's.
    packages = programs.kernel ++ [ pkgs.python3Minimal ];
    inherit hardeningDisable;
    shellHook = ''
      export KBUILD_BUILD_TIMESTAMP=''${KBUILD_BUILD_TIMESTAMP-@0}
    '';
  };
}
