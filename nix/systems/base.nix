# A minimal system, to be run in a VM.
{ lib, ... }:
{
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "25.05";
  networking.hostName = "base";
  # What takes time to build and to boot, and helps nobody here.
  documentation.enable = lib.mkDefault false;
  networking.firewall.enable = lib.mkDefault false;
  # A configuration that is only ever a VM's still has to say what it would boot from.
  boot.loader.grub.enable = false;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
}
