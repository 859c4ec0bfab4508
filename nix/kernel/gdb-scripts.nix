# The kernel's own GDB scripts, lx-…: `make scripts_gdb` on the source and configuration that a kernel was built from.
#
# A directory that `vmdebug start --gdb-scripts` takes, and `source …/vmlinux-gdb.py` in a plain GDB: scripts/gdb
# stands beside vmlinux-gdb.py, and has the generated constants.py.
{ pkgs, kernel }:
let
  inherit (pkgs) stdenv;
in
stdenv.mkDerivation {
  pname = "linux-gdb-scripts";
  inherit (kernel) version src;
  # They change the headers that constants.py is made of.
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
