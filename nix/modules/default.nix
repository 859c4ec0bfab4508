{
  default = ./vmdebug.nix;
  vmdebug = ./vmdebug.nix;
  kernel = ./kernel.nix;
  kgdb = ./kgdb.nix;
}
