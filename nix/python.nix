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

  # Nix does not need pip-tools, which writes requirements.txt. nixpkgs has import-linter and ruff as programs. It
  # has no types-gdb, so mypy only runs in a checkout with a .venv. Some releases have drgn as a program only.
  elsewhere = [
    "drgn"
    "import-linter"
    "mypy"
    "pip-tools"
    "ruff"
    "types-gdb"
  ];
in
{
  inherit (project) version description;
  dependencies = packagesOf (namesOf project.dependencies);
  development =
    packagesOf (lib.subtractLists elsewhere (namesOf project.optional-dependencies.dev))
    ++ lib.optional (python3Packages ? drgn) python3Packages.drgn;
}
