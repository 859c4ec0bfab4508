# The systems: name = modules. Each is combined with each kernel, as nixosConfigurations.SYSTEM-KERNEL.
{
  # A minimal guest.
  base = [ ./base.nix ];
  # A physical machine, installed by deployment or from a disk image; its VM has the same configuration.
  aethelred = [
    ./aethelred.nix
    ./aethelred-hardware.nix
    ../modules/kgdb.nix
  ];
}
