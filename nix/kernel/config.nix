# A configuration: merges fragments onto a base with the kernel's own merge_config.sh, and checks each option.
# `vmdebug kernel config` does the same with better messages, but using it here would rebuild all kernels after each
# change of vmdebug.
{
  pkgs,
  src,
  version,
  base,
  # Whether it is a .config, not a target of make.
  isFile,
  # Whether the base turns off all options that no fragment sets.
  minimal,
  files,
  patches,
}:
let
  inherit (pkgs) stdenv;
  # `allnoconfig` adds nothing to the fragments.
  below = if base == "allnoconfig" then "/dev/null" else ".config";
in
stdenv.mkDerivation {
  pname = "linux-config";
  inherit version src patches;
  depsBuildBuild = [ pkgs.buildPackages.stdenv.cc ];
  nativeBuildInputs = with pkgs.buildPackages; [
    bison
    flex
    perl
  ];
  postPatch = "patchShebangs scripts";
  ARCH = stdenv.hostPlatform.linuxArch;
  inherit files;
  buildPhase = ''
    runHook preBuild
    ${if isFile then "cp ${base} .config; chmod u+w .config" else "make ${base}"}
    KCONFIG_CONFIG=requested.config bash scripts/kconfig/merge_config.sh -m ${below} $files
    make KCONFIG_ALLCONFIG=requested.config ${if minimal then "allnoconfig" else "alldefconfig"}
    sh ${./stuck.sh} .config $files
    runHook postBuild
  '';
  installPhase = ''
    runHook preInstall
    cp .config $out
    runHook postInstall
  '';
  dontFixup = true;
}
