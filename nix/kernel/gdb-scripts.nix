# The kernel's own GDB scripts, lx-…: `make scripts_gdb` with the source and configuration of a kernel.
#
# A directory for `vmdebug start --gdb-scripts`, or `source …/vmlinux-gdb.py` in a plain GDB: it has vmlinux-gdb.py, and
# scripts/gdb with the generated constants.py.
{ pkgs, kernel }:
let
  inherit (pkgs) stdenv;
in
stdenv.mkDerivation {
  pname = "linux-gdb-scripts";
  inherit (kernel) version src;
  # Patches may change the headers from which constants.py is generated.
  patches = kernel.patches or [ ];
  depsBuildBuild = [ pkgs.buildPackages.stdenv.cc ];
  nativeBuildInputs = with pkgs.buildPackages; [
    bc
    bison
    elfutils
    flex
    openssl
    perl
    python3Minimal
    zlib
  ];
  postPatch = "patchShebangs scripts";
  hardeningDisable = [ "all" ];
  ARCH = stdenv.hostPlatform.linuxArch;
  inherit (kernel) configfile;
  enableParallelBuilding = true;
  buildPhase = ''
    runHook preBuild
    mkdir build
    cp $configfile build/.config
    chmod u+w build/.config
    make O=build olddefconfig
    make O=build -j$NIX_BUILD_CORES scripts_gdb
    runHook postBuild
  '';
  installPhase = ''
    runHook preInstall
    mkdir -p $out/scripts/gdb/linux
    cp scripts/gdb/linux/*.py build/scripts/gdb/linux/constants.py $out/scripts/gdb/linux/
    cp scripts/gdb/vmlinux-gdb.py $out/
    runHook postInstall
  '';
  dontFixup = true;
}
