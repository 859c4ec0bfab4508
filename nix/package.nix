# vmdebug and the programs that it starts.
{
  pkgs,
  python,
  src,
}:
let
  inherit (pkgs) lib python3Packages;
  programs = import ./programs.nix { inherit pkgs; };
in
python3Packages.buildPythonApplication {
  pname = "vmdebug";
  inherit (python) version dependencies;
  inherit src;
  pyproject = true;
  build-system = [ python3Packages.hatchling ];
  makeWrapperArgs = [
    "--prefix"
    "PATH"
    ":"
    (lib.makeBinPath (programs.run ++ programs.deploy))
  ];
  pythonImportsCheck = [ "vmdebug" ];
  meta = {
    inherit (python) description;
    license = lib.licenses.gpl2Only;
    mainProgram = "vmdebug";
    platforms = [ "x86_64-linux" ];
  };
}
