# The machine `aethelred`, except its hardware configuration.
{ lib, ... }:
{
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "25.05";
  networking.hostName = "aethelred";

  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;

  # Mounted by the labels that system.build.images.raw-efi sets, so that the disk image and later deployments mount the
  # same file systems. Label an installer's partitions with e2label and fatlabel. The priority overrides the hardware
  # configuration, and an image overrides both.
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

  # For deployments: put your ssh key here; without a key nobody can log in.
  services.openssh.enable = true;
  services.openssh.settings.PermitRootLogin = "prohibit-password";
  users.users.root.openssh.authorizedKeys.keys = [ ];
}
