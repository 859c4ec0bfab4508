# The hardware of `aethelred`, as nixos-generate-config sees it. To make it anew, on the machine or over ssh:
#   nixos-generate-config --show-hardware-config --no-filesystems
# `vmdebug deploy --facts` fetches it. File systems are not here but in aethelred.nix, by label.
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
