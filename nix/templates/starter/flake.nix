{
  description = "NixOS guests with kernels of my own";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Where you got vmdebug from.
    vmdebug.url = "github:OWNER/vmdebug";
    vmdebug.inputs.nixpkgs.follows = "nixpkgs";
    # To use another version: --override-input kernel-src URL. To use a checkout: git+file:///home/me/src/linux
    kernel-src.url = "https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.12.30.tar.xz";
    kernel-src.flake = false;
  };

  outputs =
    {
      self,
      nixpkgs,
      vmdebug,
      kernel-src,
    }:
    {
      # guest-nixos and guest-mine: `vmdebug start .#guest-mine --halt`.
      nixosConfigurations = vmdebug.lib.guests {
        systems.guest = [ ./guest.nix ];
        kernels = {
          nixos = { };
          mine = {
            src = kernel-src;
            fragments = [
              "nixos-boot"
              "debug"
              "gdb"
              ./mine.config
            ];
            # Lines and types in modules too; nixpkgs strips them.
            stripModules = false;
          };
        };
        inherit (nixpkgs.lib) nixosSystem;
      };

      # vm-guest-mine, gdb-scripts-mine, …
      packages.x86_64-linux = vmdebug.lib.packagesFor self.nixosConfigurations;

      devShells.x86_64-linux.default = nixpkgs.legacyPackages.x86_64-linux.mkShell {
        packages = [ vmdebug.packages.x86_64-linux.vmdebug ];
        # For make in a kernel tree.
        inputsFrom = [ vmdebug.devShells.x86_64-linux.kernel ];
      };
    };
}
