# The machine `aethelred`: what does not depend on its hardware.
{ lib, ... }:
{
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "25.05";
  networking.hostName = "aethelred";

  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;

  # By the labels that system.build.images.raw-efi gives them: the image that is written to the disk, and what
  # nixos-rebuild switches to later, mount the same. An installer's partitions are given them by e2label and fatlabel.
  # Stronger than those of the hardware's file, as nixos-generate-config found them, and weaker than an image's.
  fileSystems = lib.mkOverride 90 {
    "/" = {
      device = "/dev/disk/by-label/nixos";
      fsType = "ext4";
    };
    "/boot" = {
      device = "/dev/disk/by-label/ESP";
      fsType = "vfat";
      options = [ "umask=0077" ];
    };
  };
  vmdebug.diskImage = "raw-efi";

  # How it is deployed to. Put your key here: without one nobody can log in.
  services.openssh.enable = true;
  services.openssh.settings.PermitRootLogin = "prohibit-password";
  users.users.root.openssh.authorizedKeys.keys = [ ];
}
