# A kernel from a source and fragments, by nixpkgs' linuxManualConfig.
#
# Nothing is built in order to evaluate it: the version is read from the source's Makefile, the
# options from the fragments, and config.nix proves that they are in the configuration.
{
  pkgs,
  src,
  base ? "x86_64_defconfig",
  fragments ? [ ],
  patches ? [ ],
  # Given where `src` is a derivation, whose Makefile would have to be built to be read.
  version ? null,
  ccache ? null,
}:
let
  inherit (pkgs) lib;
  inherit (import ./fragments.nix { inherit lib; }) fileOf optionsOf;

  source = import ./source.nix { inherit lib src; };
  files = map fileOf fragments;
  options = lib.mergeAttrsList (map optionsOf files);
  released = if version == null then source.version else version;
  local = lib.removePrefix "\"" (lib.removeSuffix "\"" (options.CONFIG_LOCALVERSION or ""));

  configfile = import ./config.nix {
    inherit
      pkgs
      src
      base
      patches
      files
      ;
    version = released;
  };

  kernel = pkgs.linuxManualConfig {
    inherit src configfile;
    version = released;
    modDirVersion = lib.versions.pad 3 released + local;
    config = options;
    kernelPatches = map (patch: {
      name = baseNameOf patch;
      inherit patch;
    }) patches;
    extraMakeFlags = lib.optionals (ccache != null) ccache.makeFlags;
  };
in
if ccache == null then
  kernel
else
  kernel.overrideAttrs (old: {
    preConfigure = (old.preConfigure or "") + ccache.report;
  })
