# A module for a NixOS test (nixpkgs' nixos/lib/testing): `imports = [ vmdebug.lib.testModule ]`. The test's script can
# then import vmdebug, and each node has nixosModules.test.
{ src, modules }:
{ hostPkgs, ... }:
let
  python = import ./python.nix { pkgs = hostPkgs; };
  vmdebug = import ./package.nix {
    pkgs = hostPkgs;
    inherit python src;
  };
in
{
  _file = ./test.nix;
  config = {
    defaults.imports = [ modules.test ];
    # The driver's PATH has the programs of its Python packages.
    extraPythonPackages = _: [
      (hostPkgs.python3Packages.toPythonModule vmdebug)
      hostPkgs.gdb
    ];
  };
}
