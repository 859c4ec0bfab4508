# The Python packages in pyproject.toml, by their names in nixpkgs.
{ pkgs }:
let
  inherit (pkgs) lib python3Packages;
  project = (lib.importTOML ../pyproject.toml).project;

  # nixpkgs has some by another name.
  renamed.tap-py = "tappy";

  # "qemu.qmp>=0.0.3" → qemu-qmp
  nameOf =
    requirement:
    let
      name = normalized requirement;
    in
    renamed.${name} or name;
  normalized =
    requirement:
    lib.replaceStrings [ "." "_" ] [ "-" "-" ] (
      lib.toLower (lib.head (builtins.match "([A-Za-z0-9._-]*[A-Za-z0-9]).*" requirement))
    );
  namesOf = map nameOf;
  packagesOf = map (name: python3Packages.${name});

  # Nix does not need pip-tools, which writes requirements.txt, nor the limit for soupsieve, a package of furo's. nixpkgs
  # has import-linter, ruff and virtme-ng as programs. It has no types-gdb, so mypy only runs in a checkout with a .venv.
  elsewhere = [
    "import-linter"
    "mypy"
    "pip-tools"
    "ruff"
    "soupsieve"
    "types-gdb"
    "virtme-ng"
  ];

  # Some releases have drgn as a program only, no mcp, or no perfetto.
  optional = [
    "drgn"
    "mcp"
    "perfetto"
  ];
  has = name: python3Packages ? ${name};
in
{
  inherit (project) version description;
  dependencies = packagesOf (namesOf project.dependencies);
  development =
    packagesOf (lib.subtractLists (elsewhere ++ optional) (namesOf project.optional-dependencies.dev))
    ++ packagesOf (lib.filter has optional);

  # The names of those that this nixpkgs lacks.
  lacking = lib.filter (name: !has name) optional;
}
