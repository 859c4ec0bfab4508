# Each as a set that names its file: nix flake check takes no path for a module, and messages say where it is.
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
