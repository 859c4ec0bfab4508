# The programs that vmdebug starts.
{ pkgs }:
let
  # It goes into the initramfs, so it must be static. Only the program: its package has a link for each applet, which
  # would be first on PATH, and `make` would use busybox's tar, awk and cpio.
  busybox = pkgs.runCommand "busybox-static" { } ''
    mkdir -p $out/bin
    ln -s ${pkgs.pkgsStatic.busybox}/bin/busybox $out/bin/busybox
  '';
in
{
  run = [
    pkgs.qemu
    pkgs.gdb
    pkgs.nix
    pkgs.util-linux # fallocate, which bounds the console's log
    pkgs.kmod # indexes of the guest's modules
    pkgs.erofs-utils # images of modules and root file systems
    busybox
  ];

  # For the unit tests: other shells, and the programs whose output they compare.
  tests = with pkgs; [
    cpio
    dash
    openssh
    zstd
  ];

  # For building kernels.
  kernel = with pkgs; [
    bc
    bison
    ccache
    cpio
    elfutils
    flex
    gcc
    gnumake
    kmod
    ncurses
    openssl
    pahole
    perl
    pkg-config
    rsync # kselftests
    xz
    zstd
  ];

  # For `vmdebug deploy`.
  deploy = [
    pkgs.nixos-rebuild-ng
    pkgs.openssh
  ];

  # import-linter; most releases of nixpkgs do not have it.
  lint = pkgs.lib.optional (pkgs ? import-linter) pkgs.import-linter;
}
