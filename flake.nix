{
  description = "Start a Linux guest in QEMU under GDB's control, with symbols that match its kernel";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

    # What the kernels of nix/kernels.nix are built from. Another version for one command:
    #   --override-input kernel-src https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.15.tar.xz
    #   --override-input kernel-own git+file:///home/me/src/linux
    kernel-src = {
      url = "https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.12.30.tar.xz";
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

      # nix run .# -- …; nix run .#ccache: is ccache set up for Nix kernels, and if not, how.
      apps.${system} = vmdebug.apps;

      # default: for vmdebug itself; kernel: for building kernels with make.
      devShells.${system} = vmdebug.devShells;

      # vmdebug: a guest that can be debugged and cloned; kernel: which kernel; kgdb: a machine with a serial line.
      nixosModules = vmdebug.modules;

      # SYSTEM-KERNEL, of nix/systems and nix/kernels.nix.
      nixosConfigurations = vmdebug.guests;

      # lint, unit; boots-SYSTEM-KERNEL: a real guest each, wherever a builder has KVM.
      checks.${system} = vmdebug.checks;

      # nix flake init -t FLAKE: a flake of your own with a guest and two kernels.
      templates.default = {
        path = ./nix/templates/starter;
        description = "NixOS guests with kernels of your own, debugged with vmdebug";
      };

      # guests, debuggable, packagesFor; kernelFor, gdbScriptsFor.
      lib = vmdebug.lib;
    };
}
