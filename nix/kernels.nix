# The kernels, one line each: name = { src, base, fragments, patches, params }; see modules/kernel.nix.
#
# Without `src` it is NixOS's own kernel, from cache.nixos.org. The fragments of kconfigs/ are merged onto
# `base`: a target of `make` ("x86_64_defconfig", "tinyconfig"), or a .config.
{ inputs }:
let
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
  upstream = {
    src = inputs.kernel-src;
    fragments = nixos;
  };
  own = {
    src = inputs.kernel-own;
    fragments = nixos;
    params = [ "loglevel=8" ];
  };
}
