# The programs that vmdebug starts.
{ pkgs }:
let
  # It goes into the initramfs, and so must be static. Alone: its package has a link for each applet, and as they come first on
  # PATH, `make` would take busybox's tar, awk and cpio.
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
    busybox
  ];

  # What the unit tests start besides: other shells, and what our files are held against.
  tests = with pkgs; [
    cpio
    dash
    util-linux
    zstd
  ];

  # What building a kernel takes, ours and others.
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
    xz
    zstd
  ];

  # What `vmdebug deploy` is about.
  deploy = [
    pkgs.nixos-rebuild-ng
    pkgs.openssh
  ];
}
