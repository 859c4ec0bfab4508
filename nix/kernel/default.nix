# A kernel from a source and fragments, built with nixpkgs' linuxManualConfig.
#
# Evaluating it builds nothing: it reads the version from the source's Makefile, and the options from base and
# fragments. config.nix checks that the configuration has these options.
{
  pkgs,
  src,
  base ? "x86_64_defconfig",
  fragments ? [ ],
  patches ? [ ],
  # Needed if `src` is a derivation: reading its files would build it.
  version ? null,
  # nixpkgs strips the modules of every kernel.
  stripModules ? true,
  # The ccache directory, as builders see it; null: no ccache.
  ccacheDir ? null,
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
  options = builtins.foldl' (all: file: all // optionsOf file) (byDefault // ofBase) files;

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

  kernelWith =
    extraMakeFlags:
    pkgs.linuxManualConfig {
      inherit src configfile extraMakeFlags;
      version = released;
      modDirVersion = lib.versions.pad 3 released + local;
      config = options;
      kernelPatches = map (patch: {
        name = baseNameOf patch;
        inherit patch;
      }) patches;
    };

  ccache = import ./ccache.nix {
    inherit pkgs;
    dir = ccacheDir;
    cc = compilerOf (kernelWith [ ]);
  };
  # The compiler that nixpkgs uses for this kernel: make uses the last CC= of its command line. It is not the stdenv's
  # wrapper, because its hardening flags would build a different kernel.
  compilerOf =
    kernel:
    let
      flags = lib.filter (lib.hasPrefix "CC=") (kernel.commonMakeFlags or (kernel.makeFlags or [ ]));
    in
    if flags == [ ] then lib.getExe pkgs.stdenv.cc.cc else lib.removePrefix "CC=" (lib.last flags);
  kernel = kernelWith (lib.optionals (ccacheDir != null) ccache.makeFlags);

  enabled = option: options.${option} or "n" == "y";
  modular = enabled "CONFIG_MODULES";
  # One option of the choice of formats. Kconfig has a default for it, so the option may be missing here.
  dwarf = lib.any enabled [
    "CONFIG_DEBUG_INFO"
    "CONFIG_DEBUG_INFO_DWARF4"
    "CONFIG_DEBUG_INFO_DWARF5"
    "CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT"
  ];

  # NixOS refuses systemd-boot for a kernel that does not declare the EFI stub. Without `features` it checks
  # system.requiredKernelConfig instead, whose options are unknown before Kconfig has run.
  features = lib.optionalAttrs (enabled "CONFIG_EFI_STUB") { efiBootStub = true; };
in
kernel.overrideAttrs (
  old:
  {
    passthru = old.passthru // {
      features = old.passthru.features or { } // features;
      # For the messages of modules/kernel.nix.
      vmdebug.modulesLoseDwarf = modular && dwarf && stripModules;
    };
  }
  # With dontStrip, nixpkgs does not pass INSTALL_MOD_STRIP to modules_install, and does not strip in its fixup phase.
  // lib.optionalAttrs (!stripModules) { dontStrip = true; }
  # nixpkgs makes an output `dev`, and puts vmlinux there, only for a kernel with modules.
  // lib.optionalAttrs (!modular) {
    outputs = [
      "out"
      "dev"
    ];
    postInstall = (old.postInstall or "") + ''
      mkdir -p $dev
      cp vmlinux $dev/
    '';
  }
  // lib.optionalAttrs (ccacheDir != null) {
    preConfigure = (old.preConfigure or "") + ccache.report;
  }
)
