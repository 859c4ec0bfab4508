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
  programs = import ../programs.nix { inherit pkgs; };

  # The tests that import a package which this nixpkgs may lack.
  testsOf = {
    drgn = "--ignore=tests/unit/test_drgn_program.py";
    mcp = "--ignore=tests/unit/test_mcp.py";
    perfetto = "--deselect=tests/unit/test_cli_trace.py::test_perfetto_is_binary";
  };

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
  lint = onSource "lint" ([ pkgs.ruff ] ++ programs.lint) ''
    ruff check --no-cache
    ruff format --no-cache --check
    ${
      if programs.lint == [ ] then
        "echo 'lint: import-linter does not run: this nixpkgs does not have it'"
      else
        "PYTHONPATH=$PWD lint-imports --no-cache"
    }
  '';
  unit = onSource "unit" ([ interpreter ] ++ programs.run ++ programs.tests) ''
    # vmdebug is not installed here, so name its plugin; the tests also start pytest in other directories.
    export PYTHONPATH=$PWD PYTEST_PLUGINS=vmdebug.pytest_plugin
    python -m pytest -p no:cacheprovider ${toString (map (name: testsOf.${name}) python.lacking)} tests/unit
  '';
}
// lib.mapAttrs' (
  name: guest: lib.nameValuePair "boots-${name}" (import ./boots.nix { inherit pkgs vmdebug name guest; })
) guests
