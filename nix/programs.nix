# The programs that vmdebug starts. busybox goes into the initramfs, and so must be static.
{ pkgs }:
{
  run = [
    pkgs.qemu
    pkgs.gdb
    pkgs.nix
    pkgs.pkgsStatic.busybox
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
