# A configuration: fragments merged onto a base by the kernel's own merge_config.sh, each option proven to
# have stuck. `vmdebug kernel config` does the same and says more; it is not used here, for every change
# of vmdebug would then be another configuration, and another kernel.
{
  pkgs,
  src,
  version,
  base,
  # Whether it is a .config, and not a target of make.
  isFile,
  # Whether what nobody asks for is off.
  minimal,
  files,
  patches,
}:
let
  inherit (pkgs) stdenv;
  # With `allnoconfig` the fragments are all there is.
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
