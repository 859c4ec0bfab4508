# The hardware configuration of `aethelred`, by nixos-generate-config. To generate it again, over ssh:
#   vmdebug deploy --target-host root@HOST --facts -o nix/systems/aethelred-hardware.nix
# which runs `nixos-generate-config --show-hardware-config` on the machine. Its file systems have no effect:
# aethelred.nix mounts them by label.
{ modulesPath, ... }:
{
  imports = [ (modulesPath + "/installer/scan/not-detected.nix") ];
  boot.initrd.availableKernelModules = [
    "xhci_pci"
    "ahci"
    "nvme"
    "usbhid"
    "usb_storage"
    "sd_mod"
  ];
  boot.kernelModules = [ ];
}
