{
  description = "Start a Linux guest in QEMU under GDB's control, with symbols that match its kernel";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      inherit (pkgs) lib python3Packages;

      dependencies = with python3Packages; [
        filelock
        lz4
        msgspec
        pexpect
        platformdirs
        pyelftools
        pygdbmi
        qemu-qmp
        rich
        typer
        zstandard
      ];

      # What vmdebug starts; busybox goes into the initramfs and so must be static.
      programs = [
        pkgs.qemu
        pkgs.gdb
        pkgs.nix
        pkgs.pkgsStatic.busybox
      ];

      # What `vmdebug kernel build` needs.
      kernelTools = with pkgs; [
        bc
        bison
        ccache
        elfutils
        flex
        gcc
        gnumake
        kmod
        openssl
        perl
        xz
        zstd
      ];

      vmdebug = python3Packages.buildPythonApplication {
        pname = "vmdebug";
        version = (lib.importTOML ./pyproject.toml).project.version;
        pyproject = true;
        src = self;
        build-system = [ python3Packages.hatchling ];
        inherit dependencies;
        nativeCheckInputs = with python3Packages; [
          hypothesis
          pytest-timeout
          pytestCheckHook
        ];
        # The others want a built kernel, and QEMU to boot it.
        enabledTestPaths = [ "tests/unit" ];
        makeWrapperArgs = [
          "--prefix"
          "PATH"
          ":"
          (lib.makeBinPath programs)
        ];
        meta = {
          description = "Start a Linux guest in QEMU halted, with a GDB whose symbols are proven to match";
          license = lib.licenses.gpl2Only;
          mainProgram = "vmdebug";
          platforms = [ system ];
        };
      };

      python = pkgs.python3.withPackages (
        packages:
        dependencies
        ++ (with packages; [
          hypothesis
          import-linter
          mypy
          pytest
          pytest-timeout
        ])
      );
    in
    {
      packages.${system} = {
        inherit vmdebug;
        default = vmdebug;
      };

      apps.${system}.default = {
        type = "app";
        program = lib.getExe vmdebug;
      };

      # `nix develop -c make demo`: the Makefile finds all of it on PATH, and so needs neither apt nor a .venv.
      devShells.${system}.default = pkgs.mkShell {
        packages = [
          python
          pkgs.ruff
          (pkgs.writeShellScriptBin "vmdebug" ''exec python -m vmdebug.cli "$@"'')
        ]
        ++ programs
        ++ kernelTools;
        VMDEBUG_NO_APT = "1";
        VMDEBUG_NO_VENV = "1";
        # In place of Debian's linux-source package.
        KERNEL_SOURCE = pkgs.linux.src;
        # The kernel's own tools are compiled without the hardening that Nix's compiler adds.
        hardeningDisable = [ "all" ];
        shellHook = ''
          export PYTHONPATH=$PWD''${PYTHONPATH:+:$PYTHONPATH}
        '';
      };
    };
}
