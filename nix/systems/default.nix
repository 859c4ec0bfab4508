# The systems: name = its modules, or { modules, diskImage }. Each is combined with each kernel, as
# nixosConfigurations.SYSTEM-KERNEL.
{
  # A minimal guest.
  base = [ ./base.nix ];
  # A physical machine, installed by deployment or from a disk image; its VM has the same configuration.
  aethelred = {
    modules = [
      ./aethelred.nix
      ./aethelred-hardware.nix
      ../modules/kgdb.nix
    ];
    # The member of system.build.images for disk-image-aethelred-KERNEL.
    diskImage = "raw-efi";
  };
}
