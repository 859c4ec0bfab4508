# A minimal system for VMs.
{ lib, ... }:
{
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "25.05";
  networking.hostName = "base";
  # Not needed here, and slow to build and boot.
  documentation.enable = lib.mkDefault false;
  networking.firewall.enable = lib.mkDefault false;
  # NixOS requires a boot loader and file systems even if the configuration is only used for its VM.
  boot.loader.grub.enable = false;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
}
