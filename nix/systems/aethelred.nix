# The machine `aethelred`, except its hardware configuration.
{ lib, ... }:
{
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "25.05";
  networking.hostName = "aethelred";

  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;

  # Use the labels that system.build.images.raw-efi sets, so that the disk image and later deployments mount the same
  # file systems. After an installation by hand, set them with e2label and fatlabel. This priority overrides the
  # hardware configuration; the disk image's module overrides both.
  fileSystems = lib.mkOverride 90 {
    "/" = {
      device = "/dev/disk/by-label/nixos";
      fsType = "ext4";
      # The image is only as large as its contents. Its first boot grows the partition (boot.growPartition in the image's
      # module), and each boot grows the file system. NixOS's disk-image.nix sets this too, but with a priority that
      # differs between releases, so that the definition here may replace it.
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
