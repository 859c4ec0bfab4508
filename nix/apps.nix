{ pkgs, vmdebug }:
let
  inherit (pkgs) lib;
  ccache = import ./kernel/ccache.nix { inherit pkgs; };
  # Only the derivation: the program must not depend on its build.
  check = builtins.unsafeDiscardOutputDependency ccache.check.drvPath;

  app = description: program: {
    type = "app";
    inherit program;
    meta = { inherit description; };
  };
in
{
  default = app "Start a guest in QEMU under GDB's control" (lib.getExe vmdebug);

  # Only a build shows what builders can access; --check repeats it if it succeeded before.
  ccache = app "Check whether Nix builders can use ccache, and print what to configure" (toString (
    pkgs.writeShellScript "ccache" ''
      if nix-store --realise ${check} >/dev/null 2>&1 && nix-store --realise --check ${check} >/dev/null 2>&1; then
        echo "Nix's builders can use ccache."
      else
        echo "Nix's builders cannot use ccache; kernels are built without."
        cat ${ccache.says}
        exit 3
      fi
    ''
  ));
}
