# Defines the outputs that flake.nix lists.
{ inputs, system }:
let
  pkgs = inputs.nixpkgs.legacyPackages.${system};
  modules = import ./modules;
  lib = import ./lib.nix {
    inherit (inputs) nixpkgs;
    inherit modules;
    src = inputs.self;
  };
  kernels = import ./kernels.nix { inherit inputs pkgs; };
  systems = import ./systems;
  guests = lib.guests { inherit systems kernels; };
  python = import ./python.nix { inherit pkgs; };
  vmdebug = import ./package.nix {
    inherit pkgs python;
    src = inputs.self;
  };
in
{
  inherit guests lib modules;

  packages = {
    inherit vmdebug;
    default = vmdebug;
    # `vmdebug deploy` searches for it in the flake that it deploys.
    nixos-rebuild = pkgs.nixos-rebuild-ng;
    ccache-check = (import ./kernel/ccache.nix { inherit pkgs; }).check;
  }
  // lib.packagesFor guests;

  apps = import ./apps.nix { inherit pkgs vmdebug; };
  devShells = import ./shells.nix { inherit pkgs python; };
  checks = import ./checks {
    inherit
      pkgs
      python
      vmdebug
      guests
      ;
    src = inputs.self;
  };
}
