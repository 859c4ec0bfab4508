{
  description = "Start a Linux guest in QEMU under GDB's control, with symbols that match its kernel";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

    # The source of the kernels in nix/kernels.nix. By default it is the source of nixpkgs' own kernel, which is only
    # fetched to build one. A URL here would be fetched by each flake that has this one as an input. To use another:
    #   --override-input kernel-src https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.15.tar.xz
    #   --override-input kernel-own git+file:///home/me/src/linux
    kernel-src = {
      follows = "nixpkgs";
      flake = false;
    };
    kernel-own = {
      follows = "kernel-src";
      flake = false;
    };
  };

  outputs =
    inputs:
    let
      system = "x86_64-linux";
      vmdebug = import ./nix { inherit inputs system; };
    in
    {
      # vmdebug, gdb-scripts-KERNEL, vm-SYSTEM-KERNEL, disk-image-SYSTEM-KERNEL, nixos-rebuild, ccache-check.
      packages.${system} = vmdebug.packages;

      # nix run .# -- …; nix run .#ccache: checks whether Nix builders can use ccache, and prints what to set up.
      apps.${system} = vmdebug.apps;

      # default: for vmdebug itself; kernel: for building kernels with make.
      devShells.${system} = vmdebug.devShells;

      # vmdebug: makes a guest debuggable and clonable; kernel: selects the kernel; kgdb: kgdb on a serial line.
      nixosModules = vmdebug.modules;

      # SYSTEM-KERNEL, from nix/systems and nix/kernels.nix.
      nixosConfigurations = vmdebug.guests;

      # lint, unit; boots-SYSTEM-KERNEL: boots each guest, on builders with KVM.
      checks.${system} = vmdebug.checks;

      # nix flake init -t FLAKE: a flake of your own with a guest and two kernels.
      templates.default = {
        path = ./nix/templates/starter;
        description = "NixOS guests with kernels of your own, debugged with vmdebug";
      };

      # guests, debuggable, packagesFor; kernelFor, gdbScriptsFor; testModule.
      lib = vmdebug.lib;
    };
}
