# `nix flake check`, and `nix build .#checks.x86_64-linux.NAME`.
{
  pkgs,
  python,
  vmdebug,
  guests,
  src,
}:
let
  inherit (pkgs) lib;
  interpreter = pkgs.python3.withPackages (_: python.dependencies ++ python.development);

  onSource =
    name: tools: script:
    pkgs.runCommand name { nativeBuildInputs = tools; } ''
      cp -r ${src} source
      chmod -R u+w source
      cd source
      export HOME=$TMPDIR
      ${script}
      touch $out
    '';
in
{
  lint = onSource "lint" [ pkgs.ruff ] ''
    ruff check --no-cache
    ruff format --no-cache --check
  '';
  unit = onSource "unit" [ interpreter pkgs.gdb pkgs.nix pkgs.qemu pkgs.pkgsStatic.busybox ] ''
    python -m pytest -p no:cacheprovider tests/unit
  '';
}
// lib.mapAttrs' (
  name: guest: lib.nameValuePair "boots-${name}" (import ./boots.nix { inherit pkgs vmdebug name guest; })
) guests
