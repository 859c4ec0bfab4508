# The kernels, one line each: name = { src, base, fragments, patches, params, stripModules }; see modules/kernel.nix.
#
# Without `src` it is NixOS's own kernel, from cache.nixos.org. The fragments of kconfigs/ are merged onto
# `base`: a target of `make` ("x86_64_defconfig", "tinyconfig"), or a .config.
{ inputs, pkgs }:
let
  # kernel-src follows nixpkgs until a source is given; see flake.nix.
  source =
    given:
    if toString given == toString inputs.nixpkgs then
      { inherit (pkgs.linux) src version; }
    else
      { src = given; };

  # For VMs and PCs, with NixOS's firewall: one build for both.
  nixos = [
    "nixos-boot"
    "nixos-net"
    "pc"
    "debug"
    "gdb"
    ./kgdb.config
  ];
in
{
  nixos = { };
  upstream = source inputs.kernel-src // {
    fragments = nixos;
    stripModules = false;
  };
  own = source inputs.kernel-own // {
    fragments = nixos;
    stripModules = false;
    params = [ "loglevel=8" ];
  };
}
