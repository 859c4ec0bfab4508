# A configuration: fragments merged onto a base by the kernel's own merge_config.sh, each option proven to
# have stuck. `vmdebug kernel config` does the same and says more; it is not used here, for every change
# of vmdebug would then be another configuration, and another kernel.
{
  pkgs,
  src,
  version,
  base,
  files,
  patches,
}:
let
  inherit (pkgs) lib stdenv;
  isFile = builtins.isPath base || lib.hasPrefix "/" (toString base);
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
    bash scripts/kconfig/merge_config.sh -m .config $files
    make olddefconfig
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
