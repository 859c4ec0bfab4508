# Each module is a set with its file name: nix flake check accepts no path, and messages then name the file.
#
# The set has no `key`. lib.evalModules drops a module whose key it has seen, and a file's key is its path: a set
# with that key would exclude the file that it imports.
let
  named = file: {
    _file = file;
    imports = [ file ];
  };
in
{
  default = named ./vmdebug.nix;
  vmdebug = named ./vmdebug.nix;
  kernel = named ./kernel.nix;
  kgdb = named ./kgdb.nix;
  test = named ./test.nix;
}
