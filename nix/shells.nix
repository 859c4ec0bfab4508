{ pkgs, python }:
let
  programs = import ./programs.nix { inherit pkgs; };
  # The kernel's build tools are compiled without the hardening flags of Nix's compiler.
  hardeningDisable = [ "all" ];
in
{
  # `nix develop -c make demo`: everything is on PATH, so the Makefile needs neither apt nor a .venv.
  default = pkgs.mkShell {
    packages = [
      (pkgs.python3.withPackages (_: python.dependencies ++ python.development))
      pkgs.ruff
      (pkgs.writeShellScriptBin "vmdebug" ''exec python -m vmdebug.cli "$@"'')
    ]
    ++ programs.lint
    ++ programs.run
    ++ programs.tests
    ++ programs.deploy
    ++ programs.kernel;
    inherit hardeningDisable;
    VMDEBUG_NO_APT = "1";
    VMDEBUG_NO_VENV = "1";
    # Instead of Debian's linux-source package.
    KERNEL_SOURCE = pkgs.linux.src;
    shellHook = ''
      # vmdebug is not installed in this shell, so name its pytest plugin.
      export PYTHONPATH=$PWD''${PYTHONPATH:+:$PYTHONPATH} PYTEST_PLUGINS=vmdebug.pytest_plugin
    '';
  };

  # `nix develop FLAKE#kernel`, for make menuconfig and make -j in a kernel tree.
  kernel = pkgs.mkShell {
    # Some of the kernel's build scripts are in Python.
    packages = programs.kernel ++ [ pkgs.python3Minimal ];
    inherit hardeningDisable;
    shellHook = ''
      export KBUILD_BUILD_TIMESTAMP=''${KBUILD_BUILD_TIMESTAMP-@0}
    '';
  };
}
