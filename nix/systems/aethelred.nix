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
      # The image is as large as what is in it. Its first boot grows the partition (boot.growPartition, of the image's
      # module) and each boot the file system to what the partition has. Said here, since NixOS's disk-image.nix defines
      # its file systems with a priority that differs between releases, and in some of them these take its place.
      autoResize = true;
    };
    "/boot" = {
      device = "/dev/disk/by-label/ESP";
      fsType = "vfat";
      options = [ "umask=0077" ];
    };
  };

  # For deployments: put your ssh key here; without a key nobody can log in.
  services.openssh.enable = true;
  services.openssh.settings.PermitRootLogin = "prohibit-password";
  users.users.root.openssh.authorizedKeys.keys = [ ];
}
