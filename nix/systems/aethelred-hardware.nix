# The hardware of `aethelred`, as nixos-generate-config sees it. To make it anew, on the machine or over ssh:
#   vmdebug deploy --target-host root@HOST --facts -o nix/systems/aethelred-hardware.nix
# which runs `nixos-generate-config --show-hardware-config` there. What it says of file systems has no effect:
# aethelred.nix has them, by label.
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
