# A kernel from a source and fragments, built with nixpkgs' linuxManualConfig.
#
# Evaluating it builds nothing: the version is read from the source's Makefile, and the options from base and
# fragments; config.nix checks that they are in the configuration.
{
  pkgs,
  src,
  base ? "x86_64_defconfig",
  fragments ? [ ],
  patches ? [ ],
  # Needed if `src` is a derivation: reading its files would build it.
  version ? null,
  ccache ? null,
}:
let
  inherit (pkgs) lib;
  inherit (import ./fragments.nix { inherit lib; }) fileOf optionsOf withNeeds;

  # As in `vmdebug kernel config`: on a minimal base, add the fragments that others need.
  minimal = lib.elem base [
    "allnoconfig"
    "tinyconfig"
  ];
  files = if minimal then withNeeds fragments else map fileOf fragments;

  isFile = builtins.isPath base || lib.hasPrefix "/" (toString base);
  defconfig = "${src}/arch/x86/configs/${if base == "defconfig" then "x86_64_defconfig" else base}";
  ofBase =
    if isFile then
      optionsOf base
    else if version == null && builtins.pathExists defconfig then
      optionsOf defconfig
    else
      { };
  # Options that a defconfig does not list have their Kconfig default.
  byDefault = lib.optionalAttrs (!minimal && !isFile) {
    CONFIG_MODULES = "y";
    CONFIG_EFI_STUB = "y";
  };
  options = byDefault // ofBase // lib.mergeAttrsList (map optionsOf files);

  source = import ./source.nix { inherit lib src; };
  released = if version == null then source.version else version;
  local = lib.removePrefix "\"" (lib.removeSuffix "\"" (options.CONFIG_LOCALVERSION or ""));

  configfile = import ./config.nix {
    inherit
      pkgs
      src
      base
      isFile
      minimal
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

  # NixOS refuses systemd-boot for a kernel that does not declare the EFI stub. Without `features` it checks
  # system.requiredKernelConfig instead, whose options are unknown before Kconfig has run.
  features = lib.optionalAttrs (options.CONFIG_EFI_STUB or "n" == "y") { efiBootStub = true; };
in
kernel.overrideAttrs (
  old:
  {
    passthru = old.passthru // {
      features = old.passthru.features or { } // features;
    };
  }
  // lib.optionalAttrs (ccache != null) {
    preConfigure = (old.preConfigure or "") + ccache.report;
  }
)
