# Each module is a set with its file name: nix flake check accepts no path, and messages then name the file.
let
  named = file: {
    _file = file;
    key = toString file;
    imports = [ file ];
  };
in
{
  default = named ./vmdebug.nix;
  vmdebug = named ./vmdebug.nix;
  kernel = named ./kernel.nix;
  kgdb = named ./kgdb.nix;
}
